"""``hydra/launcher=gang``: one process for jobs of one graph, every job with its own row, history and fate."""

import json
import signal

import pytest
from corpus import QUICK, command, here, write_corpus
from test_resume import start_and_stop

from lmablate.results import load_runs


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Two graphs (norms) of four runs each; one of the runs diverges."""
    text = write_corpus(tmp_path_factory.mktemp("launcher") / "text")
    return (
        "-m",
        "norm=rms,layer",
        "seed=0,1",
        "optim.lr=1e-3,1e7",
        *QUICK,
        "optim.grad_clip=null",
        f"data.paths={text}/*.txt",
    )


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """The results of the gang launcher, one gang after the other."""
    folder = tmp_path_factory.mktemp("gang")
    done = command("lmablate.train", *words, "hydra/launcher=gang", "runtime.workers=1", f"results_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_gang_sweep_gives_the_rows_of_a_local_one(words, trained, tmp_path):
    done = here("lmablate.train", *words, "hydra/launcher=local", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    same = [
        "run_id",
        "status",
        "val_loss",
        "val_bpb",
        "train_loss",
        "diverged_at_step",
        "tokens",
        "norm",
        "seed",
        "optim.lr",
        "numerics",
    ]
    gang, local = (load_runs(way).sort_values("run_id", ignore_index=True)[same] for way in (trained, tmp_path))
    assert len(gang) == 8
    assert gang.equals(local)
    assert set(gang["status"]) == {"completed", "diverged"}
    again = here("lmablate.train", *words, "hydra/launcher=gang", f"results_dir={tmp_path}")
    assert "8 done already, 0 to train" in again.stdout


def test_every_member_has_a_directory_of_its_own(trained):
    assert len(list(trained.glob("*/result.json"))) == 8
    for path in trained.glob("*/result.json"):
        row = json.loads(path.read_text())
        assert row["numerics"]["gang"] is False  # bit-equal to solo, as the self-test found
        assert {"config.yaml", "history.jsonl", "status.json"} <= {p.name for p in path.parent.iterdir()}


@pytest.mark.slow
def test_a_gang_that_is_stopped_continues_to_the_same_bits(words, tmp_path):
    longer = [
        *(word for word in words if not word.startswith(("trainer.steps", "optim.lr"))),
        "trainer.steps=400",
        "hydra/launcher=gang",
    ]
    assert start_and_stop([*longer, "runtime.log_every=1"], tmp_path / "stopped", signal.SIGTERM, 6) == 143
    assert list((tmp_path / "stopped").glob("*/checkpoint/step-*.safetensors"))
    for way in ("stopped", "whole"):
        done = command("lmablate.train", *longer, f"results_dir={tmp_path / way}")
        assert done.returncode == 0, done.stderr
    stopped, whole = (
        load_runs(tmp_path / way).set_index("run_id")["val_loss"].sort_index() for way in ("stopped", "whole")
    )
    assert len(whole) == 4
    assert stopped.equals(whole)
