"""A run that is killed at any instant and run again ends with the same numbers, to the bit, as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from corpus import QUICK, command, here, write_corpus

from lmablate.results import load_history, load_runs

LONG = ("trainer.steps=60", "runtime.checkpoint_seconds=0", "model.dropout=0.1")


def run(folder, *words, **more):
    base = [w for w in QUICK if not w.startswith("trainer.steps")]
    return [*base, *LONG, f"data.paths={folder}/text/*.txt", *words], more


def result(results):
    (path,) = results.glob("*/result.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_corpus(folder / "text")
    return folder


def start_and_stop(words, results, number, at_step):
    """Start a run, wait for `at_step` in its status, send the signal; returns the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lmablate.train", *words, f"results_dir={results}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        steps = [json.loads(p.read_text()).get("step", 0) for p in results.glob("*/status.json")]
        if steps and steps[0] >= at_step:
            break
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(60)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_kill_9_and_rerun_gives_the_same_loss_to_the_bit(folder, precision):
    words, _ = run(folder, f"trainer.precision={precision}")
    whole, killed = folder / f"whole-{precision}", folder / f"killed-{precision}"
    assert here("lmablate.train", *words, f"results_dir={whole}").returncode == 0
    for at_step in (6, 30):
        assert start_and_stop(words, killed, signal.SIGKILL, at_step) == -signal.SIGKILL
        assert not list(killed.glob("*/result.json"))
    assert here("lmablate.train", *words, f"results_dir={killed}").returncode == 0
    assert result(killed)["val_loss"] == result(whole)["val_loss"]
    assert result(killed)["train_loss"] == result(whole)["train_loss"]
    same = ["run_id", "step", "tokens", "train_loss", "lr", "grad_norm", "val_loss", "val_bpb"]
    a, b = load_history(killed)[same], load_history(whole)[same]
    assert a.equals(b)


def test_sigterm_writes_a_checkpoint_and_exits_143(folder):
    words, _ = run(folder, "runtime.checkpoint_seconds=1000", "seed=3")
    words = [w for w in words if w != "runtime.checkpoint_seconds=0"]
    results = folder / "terminated"
    assert start_and_stop(words, results, signal.SIGTERM, 6) == 143
    assert len(list(results.glob("*/checkpoint/step-*.safetensors"))) == 1
    assert here("lmablate.train", *words, f"results_dir={results}").returncode == 0
    assert load_runs(results)["status"].tolist() == ["completed"]


@pytest.mark.slow
def test_a_sweep_passes_sigterm_on_and_continues_later(folder):
    words, _ = run(folder, "runtime.workers=2")
    results = folder / "sweep"
    assert start_and_stop(["-m", "norm=rms,layer", *words], results, signal.SIGTERM, 6) == 143
    assert command("lmablate.train", "-m", "norm=rms,layer", *words, f"results_dir={results}").returncode == 0
    assert sorted(load_runs(results)["norm"]) == ["layer", "rms"]


def test_a_diverged_run_is_a_row(folder):
    words, _ = run(folder, "optim.lr=1e6", "optim.grad_clip=null", "norm=none", "posemb=learned")
    results = folder / "diverged"
    done = here("lmablate.train", *words, f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    row = result(results)
    assert row["status"] == "diverged"
    assert row["val_loss"] is None
    assert 0 < row["diverged_at_step"] <= 60
    assert row["tokens"] == row["diverged_at_step"] * 4 * 32
    assert "diverged at step" in done.stdout
