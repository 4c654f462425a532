"""``hydra/launcher=gang``: one process for jobs of one graph, every job with its own row, history and fate."""

import json

import pytest
from corpus import QUICK, command, write_corpus

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


def test_a_gang_sweep_gives_the_rows_of_a_local_one(words, tmp_path):
    for launcher in ("gang", "local"):
        done = command("lmablate.train", *words, f"hydra/launcher={launcher}", f"results_dir={tmp_path / launcher}")
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
    gang, local = (
        load_runs(tmp_path / way).sort_values("run_id", ignore_index=True)[same] for way in ("gang", "local")
    )
    assert len(gang) == 8
    assert gang.equals(local)
    assert set(gang["status"]) == {"completed", "diverged"}
    again = command("lmablate.train", *words, "hydra/launcher=gang", f"results_dir={tmp_path / 'local'}")
    assert "8 done already, 0 to train" in again.stdout


def test_every_member_has_a_directory_of_its_own(words, tmp_path):
    done = command("lmablate.train", *words, "hydra/launcher=gang", "runtime.workers=1", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    for path in tmp_path.glob("*/result.json"):
        row = json.loads(path.read_text())
        assert row["numerics"]["gang"] is False  # bit-equal to solo, as the self-test found
        assert {"config.yaml", "history.jsonl", "status.json"} <= {p.name for p in path.parent.iterdir()}
