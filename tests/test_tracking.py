"""The wandb mirror: what is written, after a kill and a resume too, and what a server gets."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tracked import (
    CONFIG,
    ID,
    KEY,
    WandbServer,
    home_without_wandb,
    record,
    start,
    sync,
    wait_for,
    warnings_of,
    write_history,
)
from wandb.proto.wandb_internal_pb2 import Record

from lmablate.runs.tracking.worker import _frames, read_offline


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


def processes():
    """Parent by process id, of those that are not dead (a zombie is)."""
    if Path("/proc/self/stat").exists():
        table = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # gone meanwhile
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
                table.append((path.parent.name, parent, state))
    else:
        text = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        table = [tuple(line.split()) for line in text.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in table if state[0] != "Z"}


def test_neither_auto_nor_disabled_nor_offline_imports_wandb_into_the_training_process(tmp_path):
    code = f"""
import sys, threading
from pathlib import Path
from lmablate.runs.tracking.worker import open_tracker, resolve_mode
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
    written = next(path for path in files if path.suffix == ".wandb").read_bytes()
    records = [Record.FromString(frame) for frame in _frames(written)]
    kinds = {one.WhichOneof("record_type") for one in records}
    assert kinds == {"header", "run", "metric", "history", "summary", "telemetry", "exit"}  # no output, hardware, code
    assert b"pytest" not in written and not any(one.run.host or one.run.HasField("git") for one in records)


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
import tracked as t
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
