"""Configurations, checkpoints, tokenizers and results of a stranger run no code, lead nowhere, and show nothing they should not.

Every payload writes a canary file. Where a library would run it if we let it, a control shows that the payload is alive.
"""

import json
import logging
import os
import pickle
import re
import sys
import warnings
from html.parser import HTMLParser

import fake_results
import pytest
import torch
import yaml
from corpus import QUICK, write_corpus
from safetensors.torch import save_file

from lmablate import archive
from lmablate.cli import front_door
from lmablate.config import compose
from lmablate.config import untrusted_yaml as foreign_files
from lmablate.core import secrets
from lmablate.core.errors import ConfigError
from lmablate.core.logging import configure_logging
from lmablate.model import build_model
from lmablate.report.command import main as report
from lmablate.results import load_runs
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.run_directory import RunDirectory, read_result_file
from lmablate.training.checkpoint import load_checkpoint
from lmablate.training.optim import build_optimizer

SCRIPT = "<script>alert(1)</script>"
EVIL = """
from pathlib import Path
def touch(*args, **kwargs):
    Path(__file__).with_name("canary").write_text("ran")
    return lambda *a, **k: None
class Norm:
    def __init__(self, d_model):
        touch()
"""


class Attributes(HTMLParser):
    """The names of all attributes of a page, and what stands in its scripts."""

    def __init__(self, page):
        super().__init__()
        self.names, self.code, self.inside = set(), [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names |= {name for name, _ in attributes}
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.code += [data] if self.inside else []


class Payload:
    """Pickled, it touches a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A folder as a stranger would send it, with a module `evil`, as the current one. Yields the file that must not appear."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("evil", None)
    yield tmp_path / "canary"
    sys.modules.pop("evil", None)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Configurations.

YAMLS = {
    "a part of another module": ("conf/norm/strange.yaml", "_target_: evil.Norm", ["norm=strange"]),
    "a callback in a sweep": (
        "sweeps/strange.yaml", "# @package _global_\nhydra: {callbacks: {x: {_target_: evil.touch}}}", ["sweeps=strange"],
    ),
    "a callback by its package": ("conf/norm/strange.yaml", "# @package hydra.callbacks\nx: {_target_: evil.touch}", ["+norm@x=strange"]),
    "a callback by its group": ("conf/hydra/callbacks/strange.yaml", "x: {_target_: evil.touch}", ["+hydra/callbacks=strange"]),
    "a callback from a defaults list": (
        "sweeps/strange.yaml", "# @package _global_\ndefaults: [{'/norm@hydra.callbacks': rms}]", ["sweeps=strange"],
    ),
    "a handler of the log": (
        "conf/hydra/job_logging/strange.yaml", "version: 1\nhandlers: {x: {(): evil.touch}}\nroot: {handlers: [x]}",
        ["hydra/job_logging=strange"],
    ),
    "a launcher of another module": (
        "conf/hydra/launcher/strange.yaml", "_target_: evil.touch", ["-m", "seed=0,1", "hydra/launcher=strange"],
    ),
    "a part of a launcher": (
        "conf/hydra/launcher/strange.yaml", "_target_: hydra_plugins.lmablate.LocalLauncher\nx: {_target_: evil.touch}",
        ["-m", "seed=0,1", "hydra/launcher=strange"],
    ),
    "a part of a sweeper, by interpolation": (
        "sweeps/strange.yaml", "# @package _global_\nx: {_target_: evil.touch}\nhydra: {sweeper: {params: '${x}'}}",
        ["-m", "seed=0,1", "sweeps=strange"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_a_strangers_yaml_calls_nothing(canary, capsys, case):
    place, text, words = YAMLS[case]
    put(canary.parent / place, text)
    code = front_door.main("plan", lambda configs, launcher: pytest.fail("a stranger's words were taken"), words)
    assert code == 2 and not canary.exists()
    assert "evil" not in sys.modules
    assert {"strange", "evil"} & set(re.split(r"\W+", capsys.readouterr().err))


@pytest.mark.parametrize("case", ["a callback in a sweep", "a part of a launcher"])
def test_without_the_check_these_payloads_would_run(canary, monkeypatch, case):
    monkeypatch.setattr(foreign_files, "check_folders", lambda folders, own: None)
    place, text, words = YAMLS[case]
    put(canary.parent / place, text)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["x"])
        try:
            front_door.main("plan", lambda configs, launcher: 0, words)
        except Exception:  # it may well go on to fail
            logging.getLogger(__name__).debug("failed after the payload")
    assert canary.exists()


@pytest.mark.parametrize(
    "word",
    ["norm._target_=evil.Norm", "+hydra.callbacks={x:{_target_:evil.touch}}", "+x={_target_:evil.touch}"],
)
def test_a_class_cannot_be_named_on_the_command_line(canary, capsys, word):
    assert front_door.main("plan", lambda configs, launcher: 0, [word]) == 2
    assert "a class is chosen by an option" in capsys.readouterr().err and not canary.exists()


def test_a_configuration_has_a_size(tmp_path):
    large = put(tmp_path / "conf" / "norm" / "large.yaml", "x: " + "y" * foreign_files.MOST_BYTES)
    with pytest.raises(ConfigError, match="bytes, and a configuration has"):
        foreign_files.check_folders([tmp_path / "conf"])
    large.unlink()
    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join(['*a'] * 20)}]\n" for i in range(20))
    put(tmp_path / "conf" / "norm" / "bomb.yaml", bomb)
    with pytest.raises(ConfigError, match="400 aliases"):
        foreign_files.check_folders([tmp_path / "conf"])
    for deep in ("[" * 100_000, f"x: {'[' * 40}{']' * 40}"):
        put(tmp_path / "conf" / "norm" / "bomb.yaml", deep)
        with pytest.raises(ConfigError, match="more than 30 levels"):
            foreign_files.check_folders([tmp_path / "conf"])


def test_our_own_files_pass_the_check_of_strangers_ones():
    from lmablate.core.paths import CONF_DIR, SWEEPS_DIR

    foreign_files.check_folders([SWEEPS_DIR])
    for path in CONF_DIR.rglob("*.yaml"):
        if path.name not in ("train.yaml", "study.yaml"):  # which choose what runs the jobs, as no stranger's file may
            foreign_files.check_file(path, path.relative_to(CONF_DIR).as_posix())


@pytest.mark.parametrize(
    "text",
    [
        "schema_version: !!python/object/apply:evil.touch []",
        "!!python/object/apply:os.system ['touch canary']",
        "schema_version: 1\nx: !!python/name:evil.touch",
    ],
)
def test_config_yaml_of_a_run_is_plain_data(canary, text):
    with pytest.raises(ConfigError):
        read_config(put(canary.parent / "run" / "config.yaml", text))
    assert not canary.exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    "target",
    ["evil.Norm", "os.system", "torch.nn.parameter.torch.load", "lmablate.model.components.importlib.import_module",
     "lmablate.model.factory.torch.load", "lmablate.launcher.task.subprocess.run"],
)  # fmt: skip
def test_a_run_of_another_cannot_name_any_class(canary, target):
    cfg = compose(["model.n_layers=1", "model.d_model=32"])
    path = canary.parent / "run" / "config.yaml"
    write_config(cfg.model_copy(update={"norm": {"_target_": target}}), path)
    with pytest.raises(ConfigError, match="_target_"):
        build_model(read_config(path))
    assert not canary.exists() and "evil" not in sys.modules


# Checkpoints.


def model_and_optimizer():
    cfg = compose(["model.n_layers=1", "model.d_model=32", "data=synthetic", "tokenizer=bytes"])
    model = build_model(cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": 64})}))
    return model, build_optimizer(model, cfg.optim)


def test_a_pickle_in_the_place_of_a_checkpoint_is_set_aside_unread(canary, caplog):
    folder = canary.parent / "checkpoint"
    folder.mkdir()
    torch.save({"model": Payload(canary)}, folder / "step-000000007.safetensors")
    model, optimizer = model_and_optimizer()
    before = [p.clone() for p in model.parameters()]
    assert load_checkpoint(folder, model, optimizer) is None
    assert not canary.exists() and "damaged" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    (kept,) = folder.glob("*.damaged")
    torch.load(kept, weights_only=False)
    assert canary.exists()  # the payload was alive


def test_a_checkpoint_in_parts_has_no_pickle_that_is_read(canary):
    from lmablate.training.distributed.checkpoint import _checksum

    model, optimizer = model_and_optimizer()
    folder = canary.parent / "checkpoint" / "step-000000007.shards"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(canary)))  # where torch's own format keeps its plan
    (folder / "__0_0.distcp").write_bytes(pickle.dumps(Payload(canary)))
    (folder / "shard-1.safetensors").write_bytes(pickle.dumps(Payload(canary)))
    state = {
        "state": {"step": 7},
        "moments": [],
        "parts": {"shard-1.safetensors": _checksum(folder / "shard-1.safetensors")},
    }
    (folder / "state.json").write_text(json.dumps(state))
    assert load_checkpoint(folder.parent, model, optimizer) is None
    assert not canary.exists()
    outside = {"state": {"step": 7}, "moments": [], "parts": {"../../evil.py": "0"}}
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps(outside))
    assert load_checkpoint(folder.parent, model, optimizer) is None


def test_a_checkpoint_of_another_size_is_refused_before_it_is_used(tmp_path):
    model, optimizer = model_and_optimizer()
    tensors = {f"model.{name}": torch.zeros(p.shape) for name, p in model.named_parameters()}
    tensors["model.embedding.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "step-000000001.safetensors", {"state": json.dumps({"step": 1})})
    assert load_checkpoint(tmp_path, model, optimizer) is None


def test_files_have_sizes(tmp_path, caplog):
    """Sparse files: what is refused by its size costs no memory."""
    model, optimizer = model_and_optimizer()
    for path in (tmp_path / "step-000000001.safetensors", tmp_path / "config.yaml", tmp_path / "result.json"):
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert load_checkpoint(tmp_path, model, optimizer) is None and "bytes" in caplog.text
    with pytest.raises(ConfigError, match="are read"):
        read_config(tmp_path / "config.yaml")
    assert read_result_file(tmp_path / "result.json")[0] is None


# Tokenizers and models of others.


def test_a_tokenizer_folder_with_code_in_it_runs_none(canary):
    from lmablate.core.errors import DataError
    from lmablate.data.tokenizer import load_pretrained
    from lmablate.schema.data import PretrainedTokenizer

    folder = canary.parent / "tokenizer"
    put(folder / "tokenization_evil.py", EVIL)
    put(
        folder / "tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_evil.touch", None]}})
    )
    (folder / "tokenizer.json").write_bytes(pickle.dumps(Payload(canary)))
    settings = PretrainedTokenizer(kind="pretrained", path=str(folder), revision=None, end_token=None, vocab_size=None)
    with pytest.raises((DataError, UnicodeDecodeError)):
        load_pretrained(settings)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "evil.touch"}}))
    with pytest.raises(DataError, match="is not a saved tokenizer"):
        load_pretrained(settings)
    assert not canary.exists() and not (folder / "canary").exists()


def test_a_model_folder_with_code_in_it_runs_none(canary):
    pytest.importorskip("transformers")
    from lmablate.interop import from_hf

    folder = canary.parent / "model"
    put(folder / "modeling_evil.py", EVIL + "\ntouch()\nclass Config: pass\n")
    mapped = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Norm"}
    put(folder / "config.json", json.dumps({"model_type": "evil", "architectures": ["Norm"], "auto_map": mapped}))
    with pytest.raises(ConfigError, match="from_hf: cannot load"):
        from_hf(folder)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8}
    put(folder / "config.json", json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}))
    torch.save({"transformer.wte.weight": Payload(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|cannot load|safetensors"):
        from_hf(folder)
    assert not canary.exists() and not (folder / "canary").exists()


# Names and pages.


def test_names_cannot_leave_the_results_directory(tmp_path):
    row = fake_results.fake_row({"norm": "rms"})
    for name in ("../../evil", "/etc/evil", "a/b", "..", "x\n", ""):
        lines = [{"schema_version": 1, "common": {}}, {**row, "run_id": name}]
        put(tmp_path / "archive" / "rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ConfigError):
            archive.restore(tmp_path / "archive", tmp_path / "results")
    put(tmp_path / "archive" / "study.json", json.dumps({"sweep": "../evil", "runs": []}))
    put(
        tmp_path / "archive" / "rows.jsonl",
        json.dumps({"schema_version": 1, "common": {}}) + "\n" + json.dumps(row) + "\n",
    )
    with pytest.raises(ConfigError):
        archive.restore(tmp_path / "archive", tmp_path / "results")
    assert not list(tmp_path.glob("**/evil*")) and not list((tmp_path / "results").glob("*/*"))


def test_a_row_that_names_another_folder_is_left_out(tmp_path):
    (row,) = fake_results.write_fake_results(tmp_path, {"norm": ("rms",)}, seeds=(0,))
    path = tmp_path / row["run_id"] / "result.json"
    raw = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}
    path.write_text(json.dumps({**raw, "run_id": "../../evil"}))
    with pytest.warns(UserWarning, match="left out"):
        assert load_runs(tmp_path).empty


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..", "a/../../b"])
def test_the_name_of_a_sweep_is_no_path(name):
    from lmablate.config.overrides import sweep_file

    with pytest.raises(ConfigError, match="no such stored sweep"):
        sweep_file(name)


def test_the_report_shows_what_strangers_wrote_and_runs_none_of_it(tmp_path):
    def spoil(row):
        row["choices"]["norm"] = SCRIPT
        row["provenance"]["overrides"] = [f"norm={SCRIPT}", '"onmouseover=alert(1)', "$(touch canary)"]
        row["sweep"] = f"x{SCRIPT}"
        row["solved"] = SCRIPT
        row["arm"] = SCRIPT

    fake_results.write_fake_results(tmp_path / "results", {"norm": ("rms",)}, seeds=(0, 1), change=spoil)
    fake_results.write_fake_results(tmp_path / "results", {"norm": ("layer",)}, seeds=(0, 1), sweep=None)
    failed = RunDirectory(tmp_path / "results", "feedfeedfeed")
    failed.write_status({"state": "failed", "error": f"ValueError: {SCRIPT}"})
    (failed.path / "config.yaml").write_text(yaml.safe_dump({"overrides": [SCRIPT]}))
    assert report([str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;script&gt;" in page and "<script>alert" not in page.lower()
    found = Attributes(page)
    assert "onmouseover" not in found.names and not [
        code for code in found.code if "alert(1)" in code and "u003cscript" not in code
    ]
    for path in (tmp_path / "out").rglob("*.svg"):
        assert "<script" not in path.read_text().lower()


# Secrets.

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_a_configuration_with_a_secret_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for word in (
        f"runtime.wandb_project={KEY}",
        "runtime.wandb_project=${oc.env:WANDB_API_KEY}",
        f"results_dir=/data/{KEY}/x",
    ):
        with pytest.raises(ConfigError, match="WANDB_API_KEY") as told:
            compose([word])
        assert KEY not in str(told.value)
    assert compose(["runtime.wandb_project=mine"])


def test_messages_status_results_and_logs_hold_the_name_for_the_value(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("SHORT_KEY", "abc")
    directory = RunDirectory(tmp_path, "feedfeedfeed")
    directory.write_status({"state": "failed", "error": f"HTTPError: 401 for token {KEY}"})
    directory.append({"step": 0, "note": KEY})
    assert all(KEY not in path.read_text() for path in directory.path.iterdir() if path.is_file())
    assert directory.read_status()["error"] == "HTTPError: 401 for token <HF_TOKEN>"
    before = sys.stderr, sys.stdout
    try:
        configure_logging()
        print(f"token {KEY}", file=sys.stderr)
        logging.getLogger("lmablate").warning("no access with %s", KEY)
    finally:
        sys.stderr, sys.stdout = before
    assert secrets.redacted(f"abc {KEY}") == "abc <HF_TOKEN>"
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_run_leaves_no_secret_in_its_folder(monkeypatch, tmp_path):
    from corpus import command

    text = write_corpus(tmp_path / "text")
    env = {"WANDB_API_KEY": KEY, "HF_TOKEN": KEY[::-1], "WANDB_MODE": "offline"}
    words = [w for w in QUICK if not w.startswith("runtime.wandb")] + ["runtime.wandb=offline"]
    done = command("lmablate.train", *words, f"data.paths={text}/*.txt", f"results_dir={tmp_path / 'results'}", env=env)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "results").rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert KEY.encode() not in raw and KEY[::-1].encode() not in raw, path
    assert KEY not in done.stdout + done.stderr
    assert os.path.isdir(tmp_path / "results")
