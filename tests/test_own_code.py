"""A variant of the user's own is part of the experiment: its code, its draws, its counts, its state."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from corpus import QUICK, write_corpus
from own_package import PARTS, as_new_process, write_package
from tiny import SmallText

from lmablate.budget import flops_per_token, kv_bytes_per_token, parameters
from lmablate.budget.measured import measures_flops
from lmablate.config import compose
from lmablate.core import source_code
from lmablate.core.errors import ConfigError
from lmablate.core.paths import ROOT
from lmablate.launcher.jobs import prepare_jobs
from lmablate.launcher.scheduler import run_jobs
from lmablate.model import build_model, components
from lmablate.runs.prepared import check_code, load_data, with_data
from lmablate.schema.identity import run_id
from lmablate.training.gang import graph_key
from lmablate.training.progress import Interrupted
from lmablate.training.trainer import Trainer

SIZES = [word for word in QUICK if not word.startswith("runtime.wandb")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("own") / "text")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a user, who works in it, with its package opened."""
    module = write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(components, "_trusted", {"mypackage"})
    as_new_process()
    yield module
    as_new_process()


def config(corpus, *words):
    return compose([*SIZES, f"data.paths={corpus}/*.txt", "trainer.precision=fp32", "runtime.device=cpu", *words])


def identity(corpus, *words):
    as_new_process()
    cfg = config(corpus, *words)
    data = load_data(cfg)
    return run_id(with_data(cfg, data), data)


# --- Code in the identity -------------------------------------------------------------------------------------------------


def test_edited_code_is_another_run_and_reformatted_code_is_the_same(package, corpus):
    first, shipped = identity(corpus, "norm=users_largest"), identity(corpus)
    package.write_text(
        PARTS.replace("Parts of my own.", "Said otherwise.").replace("(x.abs()", "(  # of all\n            x.abs()")
    )
    assert identity(corpus, "norm=users_largest") == first
    package.write_text(PARTS.replace("helpers.FACTOR * x", "3 * x"))
    assert identity(corpus, "norm=users_largest") != first
    package.write_text(PARTS)
    (package.parent / "helpers.py").write_text(
        "FACTOR = 2.0\n"
    )  # a module of the package that the part's module imports
    assert identity(corpus, "norm=users_largest") != first
    assert identity(corpus) == shipped


def test_a_command_says_what_is_not_as_shipped_and_rows_carry_it(package, corpus, tmp_path, caplog):
    caplog.set_level("INFO", "lmablate")
    (job,), _ = prepare_jobs([config(corpus, "norm=users_largest", f"results_dir={tmp_path / 'results'}")])
    assert "not as shipped, so part of the run id by content: mypackage.helpers, mypackage.parts" in caplog.text
    assert run_jobs([job]) == 0
    assert set(job.row["code"]) == {"mypackage.parts", "mypackage.helpers"}
    assert source_code.changed_since(job.row["code"]) == []
    package.write_text(PARTS.replace("helpers.FACTOR * x", "3 * x"))
    source_code._read.cache_clear()
    assert source_code.changed_since(job.row["code"]) == ["mypackage.parts"]
    with pytest.raises(ConfigError, match=r"has changed since it was planned \(.*mypackage.parts.*repeat the command"):
        check_code(job.cfg)


def test_a_finished_run_is_trained_again_on_purpose(corpus, tmp_path):
    words = f"results_dir={tmp_path / 'results'}", "trainer.steps=2"
    (job,), _ = prepare_jobs([config(corpus, *words)])
    assert run_jobs([job]) == 0 and job.done
    (again,), _ = prepare_jobs([config(corpus, *words, "runtime.again=true")])
    assert again.run_id == job.run_id and not again.done
    began = job.row["provenance"]["started"], job.directory.result_path.stat().st_ino
    assert run_jobs([again]) == 0 and again.done
    assert (again.row["provenance"]["started"], again.directory.result_path.stat().st_ino) != began
    (kept,) = (tmp_path / "results" / ".replaced").iterdir()
    assert json.loads((kept / "result.json").read_text())["val_loss"] == again.row["val_loss"]


OPTIM = (source_code.HERE / "training/optim.py").read_text()
ADDED = OPTIM + "\n\nclass Mine:\n    pass\n"


@pytest.mark.parametrize(
    ("text", "different", "changed"),
    [
        (OPTIM.replace('"""Fused AdamW', '"""AdamW').replace("return 1.0", "return 1.0  # the peak"), set(), False),
        (ADDED, {"Mine"}, False),
        (OPTIM.replace("return 1.0", "return 2.0"), {"lr_factor"}, True),
        (ADDED.replace("class Mine", "class set_lr"), {"set_lr"}, True),  # it takes the place of the one before
    ],
    ids=["words", "added", "changed", "replaced"],
)
def test_a_file_of_ours_is_held_against_what_was_shipped(text, different, changed, tmp_path):
    path = tmp_path / "optim.py"
    path.write_text(text)
    shipped = json.loads(source_code.MANIFEST.read_text())["lmablate.training.optim"]
    state = source_code._compared("lmablate.training.optim", path, shipped)
    assert (state.different, state.changed) == (different, changed)


def test_a_new_file_of_ours_counts_for_the_runs_that_use_it_alone(monkeypatch):
    """Beside the shipped modules it orphaned every run, whatever its options."""
    states = {**source_code._states(), "lmablate.model.mine": source_code.State({source_code.NEW})}
    monkeypatch.setattr(source_code, "_states", lambda: states)
    path = source_code.HERE / "training/optim.py"  # any code will do
    monkeypatch.setattr(source_code, "_find", lambda module: path if module == "lmablate.model.mine" else None)
    assert source_code._Closure([("lmablate.model.norm", "RMSNorm")]).counted() == {}
    assert set(source_code._Closure([("lmablate.model.mine", "Mine")]).counted()) == {"lmablate.model.mine"}


def test_what_was_shipped_is_the_code_that_is_here():
    """Of files that are not committed, additions may be the user's own variants."""
    done = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True)
    edited = {(ROOT / line[3:]).resolve() for line in done.stdout.splitlines()} if done.returncode == 0 else set()
    stale = [
        module
        for module, state in source_code._states().items()
        if state.changed or (state.different and source_code.science_modules()[module].resolve() not in edited)
    ]
    assert not stale, (
        "these decide numbers and are not as lmablate/shipped.json has them: raise SCIENCE_VERSION if numbers move, "
        "then run python -m lmablate.core.source_code"
    )


def test_an_option_here_that_the_projects_own_hides_is_refused(package, corpus):
    """conf/norm/rms.yaml of a user's folder was not read, and nothing said so."""
    (package.parents[1] / "conf/norm/rms.yaml").write_text(
        "# Mine. norm=rms\n_target_: mypackage.parts.MaxNorm\neps: 1.0\n"
    )
    config(corpus, "norm=layer")
    with pytest.raises(ConfigError, match=r"norm=rms: conf/norm/rms\.yaml of this folder is not read"):
        config(corpus, "norm=rms")


# --- Draws, noise and state -----------------------------------------------------------------------------------------------


def trained(cfg, folder=None, stop_at=None):
    trainer = Trainer(build_model(cfg), SmallText(), cfg, folder=folder)
    steps = SimpleNamespace(n=0)

    def stop():
        steps.n += 1
        return 15 if steps.n == stop_at else 0

    try:
        losses = [record.get("train_loss") for record in trainer.records(stop)]
    except Interrupted:
        return None
    return trainer, losses


def test_plain_torch_parts_give_equal_runs_from_equal_seeds(package, corpus):
    """Weights, raw parameters and random numbers of the forward pass; three calls were 5.129, 5.043 and 5.097."""
    cfg = config(corpus, "attention=users_gated", "trainer.steps=4", "runtime.log_every=1")
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": 64})})
    torch.manual_seed(1)
    first, losses = trained(cfg)
    torch.manual_seed(2)
    second, again = trained(cfg)
    assert losses == again
    for (name, mine), (_, theirs) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    gates = [block.attention.branch.gate.weight for block in build_model(cfg).blocks]
    assert not torch.equal(*gates), "each layer has draws of its own"
    other = cfg.model_copy(update={"init_seed": 9})
    assert not torch.equal(build_model(other).blocks[0].attention.branch.gate.weight, gates[0])


def test_what_another_part_draws_moves_no_draw(package, corpus):
    """The draws of a place depend on its layer, branch and shape, and not on what is drawn before it."""
    cfg = config(corpus, "attention=users_gated")
    gate = build_model(cfg).blocks[1].attention.branch.gate.weight
    package.write_text(PARTS.replace("self.gate =", "self.more = nn.Linear(3, 5)\n        self.gate ="))
    as_new_process()
    assert torch.equal(build_model(cfg).blocks[1].attention.branch.gate.weight, gate)


def test_plain_torch_parts_resume_to_the_bit(package, corpus, tmp_path):
    """Their buffers too, which a forward pass changes."""
    cfg = config(corpus, "attention=users_gated", "trainer.steps=6", "runtime.log_every=1")
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": 64})})
    whole, _ = trained(cfg)
    assert trained(cfg, tmp_path, stop_at=3) is None
    resumed, _ = trained(cfg, tmp_path)
    assert float(resumed.model.blocks[0].attention.branch.seen) == 6
    for (name, mine), (_, theirs) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_plain_torch_parts_train_alone(package, corpus):
    cfg, data = config(corpus, "attention=users_gated"), SimpleNamespace(fingerprint="", tokenizer_fingerprint="")
    assert graph_key(cfg, data) is None
    assert graph_key(config(corpus, "norm=users_largest"), data) is not None


# --- Counts ---------------------------------------------------------------------------------------------------------------


def test_parameters_that_a_class_does_not_state_are_counted_by_building(package, corpus):
    cfg = config(corpus, "attention=users_gated")
    built = sum(p.numel() for p in build_model(cfg, device="meta").parameters())
    assert parameters(cfg).total == built
    mha, d = config(corpus), cfg.model.d_model
    assert built - parameters(mha).total == cfg.model.n_layers * (d * d + 2 * d)
    assert flops_per_token(cfg) - flops_per_token(mha) == 6 * cfg.model.n_layers * d * d
    assert kv_bytes_per_token(cfg) == kv_bytes_per_token(mha)
    assert (measures_flops(cfg), measures_flops(mha)) == (["attention"], [])


def test_a_budget_counts_what_is_built(package, corpus):
    arm, reference = (
        parameters(config(corpus, f"attention={word}", "budget=params")).total for word in ("users_gated", "mha")
    )
    assert arm == pytest.approx(reference, rel=0.01)


def test_a_stated_count_that_is_not_built_is_refused(package, corpus):
    with pytest.raises(ConfigError) as refused:
        config(corpus, "attention=miscounted")
    said = str(refused.value)
    assert "attention=miscounted (mypackage.parts.Miscounted)" in said
    built = sum(p.numel() for p in build_model(config(corpus, "attention=users_gated"), device="meta").parameters())
    assert f"{built:,}" in said and f"{parameters(config(corpus)).total:,}" in said


# --- Whole commands -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_agree_to_the_bit_on_any_number_of_workers_and_after_a_kill(tmp_path, corpus):
    """Three commands on one worker, on two, and on two that were killed at work and started again."""
    write_package(tmp_path)
    sizes = [word for word in SIZES if not word.startswith("trainer.steps")]
    words = [
        *sizes,
        f"data.paths={corpus}/*.txt",
        "attention=users_gated",
        "seed=0,1",
        "trainer.steps=200",
        "runtime.checkpoint_seconds=0",
    ]

    def command(folder, workers):
        own = ["-m", *words, f"results_dir={folder}", f"runtime.workers={workers}", "--trust", "mypackage"]
        return subprocess.Popen([sys.executable, "-m", "lmablate.train", *own], cwd=tmp_path, start_new_session=True)

    def rows(folder):
        found = [json.loads(path.read_text()) for path in sorted((tmp_path / folder).glob("*/result.json"))]
        return [(row["run_id"], row["val_loss"], row["train_loss"]) for row in found]

    for folder, workers in (("one", 1), ("two", 2)):
        assert command(folder, workers).wait(300) == 0
    killed = command("killed", 2)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*/checkpoint/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(60)
    assert len(rows("killed")) < 2
    assert command("killed", 2).wait(300) == 0
    assert rows("one") == rows("two") == rows("killed")
    assert len(rows("one")) == 2
