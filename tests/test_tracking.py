"""The wandb mirror: what is written, what happens when wandb fails, and that training never waits for it."""

import json
import logging
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_server import KEY, SilentServer, WandbServer, home_without_wandb

from lmablate.tracking import open_tracker, read_offline

ID = "1f2e3d4c5b6a"
CONFIG = {"norm": "layer", "model.d_model": 128, "optim.lr": 1e-3, "compile": False, "model.d_ff": None}


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


def start(mode, directory, *, resume=False, **timeouts):
    options = {"run_id": ID, "name": f"layer-{ID}", "group": "norms", "project": "ablations", "config": CONFIG}
    return open_tracker(mode, **options, directory=directory, resume=resume, **timeouts)


def record(step, **more):
    """A line of history.jsonl, its numbers long enough to be spoilt by any rounding."""
    numbers = {"seconds": step / 7, "train_loss": 5 / (step + 3), "lr": 1e-3 / (step + 1)}
    return {"step": step, "tokens": step * 2048, **numbers, **more}


def write_history(directory, steps):
    lines = (json.dumps(record(step, val_loss=None)) + "\n" for step in range(steps))
    (directory / "history.jsonl").write_text("".join(lines))


def warnings_of(caplog):
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def sync(*words):
    """wandb's own command."""
    subprocess.run([Path(sys.executable).with_name("wandb"), *words], check=True, capture_output=True, timeout=60)


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def processes():
    """Parent by process id, of those that are not dead (a zombie is)."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    return {int(pid): int(parent) for pid, parent, state in map(str.split, table.splitlines()) if state[0] != "Z"}


# --- what is written ---


def test_neither_auto_nor_disabled_nor_offline_imports_wandb_into_the_training_process(tmp_path):
    code = f"""
import sys, threading
from pathlib import Path
from lmablate.tracking import open_tracker, resolve_mode
for mode in ("disabled", "auto", "offline"):
    before = threading.active_count()
    names = dict(run_id="a", name="n", group=None, project="p", config={{}}, directory=Path({str(tmp_path)!r}))
    tracker = open_tracker(mode, **names, resume=False)
    if mode != "offline":
        assert tracker.mode == "disabled" and threading.active_count() == before
    tracker.log({{"step": 0, "tokens": 0}})
    tracker.finish("completed", {{}})
assert "wandb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read_offline(tmp_path)["history"] == [{"step": 0, "tokens": 0}]


def test_offline_holds_what_history_jsonl_holds(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    lines = [record(step, val_loss=0.1 + 0.2 if step % 3 == 0 else None, grad_norm=1e-300) for step in range(400)]
    lines[0] = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": 8.3, "val_bpb": 2.1}
    tracker = start("offline", tmp_path)
    for line in lines:
        tracker.log(line)
    tracker.finish("completed", {"val_loss": 1.25, "val_bpb": 0.5, "diverged_at_step": None, "n_params": 2**53 + 1})
    tracker.finish("failed", {"val_loss": 0.0})
    tracker.log(record(400))
    run = read_offline(tmp_path)
    assert run["history"] == [{key: value for key, value in line.items() if value is not None} for line in lines]
    assert (run["run_id"], run["name"], run["group"], run["project"]) == (ID, f"layer-{ID}", "norms", "ablations")
    assert (run["config"], run["exit_code"]) == (CONFIG, 0)
    final = {"val_loss": 1.25, "val_bpb": 0.5, "diverged_at_step": None, "n_params": 2**53 + 1, "status": "completed"}
    assert {key: run["summary"][key] for key in final} == final
    assert capfd.readouterr() == ("", "")
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".wandb", ".log"}  # no code, diff, requirements, metadata
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    log = next(path for path in files if path.suffix == ".wandb").read_bytes()
    assert b"pytest" not in log and (len(socket.gethostname()) < 5 or socket.gethostname().encode() not in log)


def test_a_diverged_run_keeps_its_numbers_and_is_no_failure(tmp_path):
    tracker = start("offline", tmp_path)
    tracker.log(record(0, val_loss=8.0))
    tracker.log(record(1) | {"train_loss": math.nan, "grad_norm": math.inf})
    tracker.finish("diverged", {"val_loss": None, "diverged_at_step": 1})
    run = read_offline(tmp_path)
    assert math.isnan(run["history"][1]["train_loss"]) and run["history"][1]["grad_norm"] == math.inf
    assert (run["exit_code"], run["summary"]["val_loss"], run["summary"]["diverged_at_step"]) == (0, None, 1)


def run_that_breaks(directory, steps):
    with start("offline", directory) as tracker:
        for step in range(steps):
            tracker.log(record(step))
        raise ZeroDivisionError


def test_an_exception_ends_the_run_as_failed_and_a_torn_file_is_read_up_to_the_tear(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_that_breaks(tmp_path, 600)  # more than one block of the file
    run = read_offline(tmp_path)
    assert (run["exit_code"], run["summary"]["status"]) == (1, "failed")
    assert run["history"] == [record(step) for step in range(600)]

    path = next(tmp_path.glob("wandb/*/*.wandb"))
    assert path.stat().st_size > 3 * 2**15
    path.write_bytes(path.read_bytes()[:-3000])
    torn = read_offline(tmp_path)
    assert 500 < len(torn["history"]) < 600 and torn["history"] == run["history"][: len(torn["history"])]
    assert torn["exit_code"] is None


def test_without_files_the_reader_says_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runtime\.wandb=offline"):
        read_offline(tmp_path)


# --- kill and resume ---


def test_a_killed_run_keeps_its_records_and_a_resumed_one_continues_it(tmp_path, server, monkeypatch):
    code = f"""
import time
from pathlib import Path
import test_tracking as t
tracker = t.start("offline", Path({str(tmp_path)!r}))
for step in range(5):
    tracker.log(t.record(step))
tracker._started.wait()
time.sleep(0.2)
print(tracker._worker.process.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    training = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    worker = int(training.stdout.readline())
    family = {worker, *(pid for pid, parent in processes().items() if parent == worker)}
    assert len(family) == 2  # wandb's process and wandb-core
    training.send_signal(signal.SIGKILL)
    training.wait()
    wait_for(lambda: not family & set(processes()))
    first = read_offline(tmp_path)
    assert (first["exit_code"], first["history"]) == (1, [record(step) for step in range(5)])

    # The checkpoint was at step 6; 5 and 6 were recorded in history.jsonl and are supposed not to have got through.
    write_history(tmp_path, 7)
    tracker = start("offline", tmp_path, resume=True)
    tracker.log(record(7))
    tracker.finish("completed", {})
    merged = read_offline(tmp_path)
    assert (merged["run_id"], merged["exit_code"]) == (ID, 0)
    assert merged["history"] == [record(step) for step in range(8)]

    # A second resume, from a checkpoint before the end: what is logged again replaces what was.
    tracker = start("offline", tmp_path, resume=True)
    again = [record(step) | {"seconds": 99.0} for step in range(6, 9)]
    for line in again:
        tracker.log(line)
    tracker.finish("completed", {})
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{ID}*"))) == 3
    assert read_offline(tmp_path)["history"] == [record(step) for step in range(6)] + again

    # What wandb's own command makes of the three: one run, every record, in order.
    monkeypatch.chdir(tmp_path)
    sync("sync", "--yes")
    assert [line["step"] for line in server.runs[ID]["history"]] == [*range(8), 6, 7, 8]


# --- online ---


def test_online_sends_the_records_and_a_resumed_run_continues(tmp_path, server, caplog, capfd):
    tracker = start("online", tmp_path)
    for step in range(3):
        tracker.log(record(step))
    tracker.finish("failed", {})
    run = server.runs[ID]
    sent = [{key: value for key, value in line.items() if key[0] != "_"} for line in run["history"]]
    assert sent == [record(step) for step in range(3)] and run["exit_code"] == 1
    assert (run["upsert"]["groupName"], run["upsert"]["displayName"]) == ("norms", f"layer-{ID}")
    assert not any(run["upsert"][key] for key in ("host", "program", "commit", "repo"))
    config = json.loads(run["config"])
    assert {key: config[key]["value"] for key in CONFIG} == CONFIG
    tokens, every = config["_wandb"]["value"]["m"]
    assert (tokens["1"], every["2"], every["5"]) == ("tokens", "*", 1)  # every chart over the first metric, tokens
    assert {path.rpartition("/")[2] for path in server.paths} == {"graphql", "file_stream"}  # no reports to anybody

    write_history(tmp_path, 5)
    tracker = start("online", tmp_path, resume=True)  # 3 and 4 never reached the server
    tracker.log(record(5))
    tracker.finish("completed", {"val_loss": 2.5})
    assert [line["step"] for line in run["history"]] == [0, 1, 2, 3, 4, 5]
    assert json.loads(run["summary"])["val_loss"] == 2.5 and run["exit_code"] == 0
    assert tracker.mode == "online" and warnings_of(caplog) == [] and capfd.readouterr() == ("", "")


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
    code = "from lmablate.tracking import _leave_when_orphaned; _leave_when_orphaned(-1, 0.1)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 1


def test_a_machine_without_threads_means_no_mirror(tmp_path, monkeypatch, caplog):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_thread)
    with start("offline", tmp_path) as tracker:
        tracker.log(record(0))
    assert tracker.mode == "disabled" and len(warnings_of(caplog)) == 1
