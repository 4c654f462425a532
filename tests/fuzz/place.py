"""Where a line is given: a small working folder with finished runs, a text, a stored sweep, and options and parts of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from corpus import write_corpus
from own_package import write_package

# Six steps of a model that is as small as one can be.
TINY = (
    "trainer.steps=6", "trainer.batch_size=2", "model.n_layers=1", "model.d_model=16", "model.n_heads=2",
    "model.context_length=16", "tokenizer=bytes", "data.val_bytes=500", "runtime.evaluations=1", "runtime.wandb=disabled",
)  # fmt: skip
TEXT = ("data=files", "data.paths=text/*.txt")
SWEEP = """# @package _global_
# Which norm?
defaults: []
sweep:
  question: Which norm?
hydra:
  mode: MULTIRUN
  sweeper:
    params: {norm: "rms,layer", seed: "0,1"}
"""


def build(root: Path, run: Callable[[str, Sequence[str], Path], None]) -> None:
    """Make the folder that each line gets a copy of; `run` carries out one valid command in it."""
    work = root / "work"
    for folder in (work, root / "home", root / "tmp", root / "cache"):
        folder.mkdir(parents=True)
    write_corpus(work / "text", documents=5)
    rows = [json.dumps({"text": f"row {i} of the book", "id": i}) for i in range(40)]
    (work / "rows.jsonl").write_text("\n".join(rows) + "\n")
    points = "".join(f"{10.0**i},{1.9 + 60 * 10.0 ** (-0.14 * i):.6f}\n" for i in range(12, 18))
    (work / "points.csv").write_text(f"flops,loss\n{points}")
    (work / "sweeps").mkdir()
    (work / "sweeps" / "mine.yaml").write_text(SWEEP)
    write_package(work)
    run("lmablate.train", ["-m", *TINY, *TEXT, "norm=rms,layer", "seed=0,1"], root)
    run("lmablate.archive", ["save", "results", "kept.tar"], root)
    # What matplotlib and others keep in the home, so that no line has to wait for it.
    run("lmablate.report", ["results", "--out", "first"], root)
    shutil.rmtree(work / "first")


def runs(root: Path) -> list[str]:
    """The ids of the finished runs, as stable from one version of the code to another as their configurations are."""
    return sorted(path.parent.name for path in (root / "work" / "results").glob("*/result.json"))


def contents(root: Path) -> dict[str, str]:
    """Every file and folder of the working folder and the home, with a fingerprint; what may not be read has none."""
    found: dict[str, str] = {}
    for top in ("work", "home"):
        _walk(root / top, root, found)
    return found


def _walk(folder: Path, root: Path, found: dict[str, str]) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        name = str(path.relative_to(root))
        if entry.is_dir(follow_symlinks=False):
            found[name] = "folder"
            _walk(path, root, found)
        else:
            found[name] = _print_of(path)


def _print_of(path: Path) -> str:
    try:
        if path.is_symlink() or not stat.S_ISREG(path.stat().st_mode):
            return "special"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def remove(root: Path) -> None:
    """Remove a tree whatever its modes."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o700)
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
    shutil.rmtree(root, ignore_errors=True)
