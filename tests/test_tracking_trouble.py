"""The wandb mirror in trouble: training never waits for it, hears one warning, and loses nothing that can be kept."""

import shlex
import signal
import subprocess
import sys
import time

import pytest
from tracked import ID, KEY, SilentServer, WandbServer, home_without_wandb, record, start, sync, warnings_of

from lmablate.runs.tracking.worker import read_offline


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    return home_without_wandb(tmp_path, monkeypatch)


@pytest.fixture
def server(monkeypatch):
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.stop()


def test_a_server_that_refuses_means_offline_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    tracker = start("online", tmp_path, start_timeout=3, finish_timeout=20)
    assert time.monotonic() - began < 0.5
    for step in range(3):
        tracker.log(record(step))
    tracker.finish("completed", {})
    assert time.monotonic() - began < 12
    assert tracker.mode == "offline" and read_offline(tmp_path)["history"] == [record(step) for step in range(3)]
    (warning,) = warnings_of(caplog)
    assert "offline" in warning and "wandb sync" in warning and KEY not in warning


@pytest.mark.slow
def test_a_server_that_never_answers_does_not_hold_up_the_end_of_a_run(tmp_path, monkeypatch, caplog):
    server = SilentServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start("online", tmp_path, start_timeout=60, finish_timeout=10)
    tracker.log(record(0))
    began = time.monotonic()
    tracker.finish("completed", {})
    server.stop()
    assert time.monotonic() - began < 11
    assert read_offline(tmp_path)["history"] == [record(0)] and len(warnings_of(caplog)) == 1


def test_without_a_key_online_becomes_offline(tmp_path, caplog):
    tracker = start("online", tmp_path)
    tracker.log(record(0))
    tracker.finish("completed", {})
    (warning,) = warnings_of(caplog)
    assert tracker.mode == "offline" and "key" in warning and read_offline(tmp_path)["history"] == [record(0)]


@pytest.mark.slow
def test_a_server_lost_in_mid_run_costs_a_bounded_end_and_no_record(tmp_path, server, monkeypatch, caplog):
    tracker = start("online", tmp_path, finish_timeout=5)
    tracker.log(record(0))
    assert server.started.wait(15) and tracker._started.wait(15)
    server.stop()
    for step in range(1, 20):
        tracker.log(record(step))
    began = time.monotonic()
    tracker.finish("completed", {})
    assert time.monotonic() - began < 6
    (warning,) = warnings_of(caplog)
    assert read_offline(tmp_path)["history"] == [record(step) for step in range(20)]

    again = WandbServer()  # what the warning advises works
    monkeypatch.setenv("WANDB_BASE_URL", again.url)
    sync(*shlex.split(warning.split("`")[1])[1:])
    again.stop()
    assert [line["step"] for line in again.runs[ID]["history"]] == [*range(20)]


# --- when wandb fails ---


def test_where_offline_cannot_start_either_the_run_goes_on_alone(tmp_path, caplog):
    (tmp_path / "wandb").write_text("in the way")
    tracker = start("offline", tmp_path)
    tracker.log(record(0))
    tracker.finish("completed", {})
    assert tracker.mode == "disabled"
    (warning,) = warnings_of(caplog)
    assert "goes on without it" in warning and "exists" in warning.lower()


def test_a_dead_wandb_turns_the_tracker_off_with_one_warning(tmp_path, caplog):
    tracker = start("offline", tmp_path)
    assert tracker._started.wait(20)
    tracker._worker.process.kill()
    for step in range(50):
        tracker.log(record(step))
        time.sleep(0.005)
    tracker.finish("completed", {})
    assert tracker.mode == "disabled" and len(warnings_of(caplog)) == 1
    tracker.log(record(50))


def test_a_hanging_wandb_never_holds_up_training(tmp_path, caplog):
    tracker = start("offline", tmp_path, finish_timeout=1)
    assert tracker._started.wait(20)
    worker = tracker._worker.process
    worker.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for step in range(5000):  # far more than a pipe holds
        tracker.log(record(step))
    assert time.monotonic() - began < 1
    tracker.finish("completed", {})
    assert time.monotonic() - began < 4
    assert worker.poll() is not None and len(warnings_of(caplog)) == 1


def test_an_orphan_that_hangs_leaves():
    code = "from lmablate.runs.tracking.worker import _leave_when_orphaned; _leave_when_orphaned(-1, 0.1)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 1


def test_a_machine_without_threads_means_no_mirror(tmp_path, monkeypatch, caplog):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_thread)
    with start("offline", tmp_path) as tracker:
        tracker.log(record(0))
    assert tracker.mode == "disabled" and len(warnings_of(caplog)) == 1
