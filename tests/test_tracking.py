"""wandb: what is written of the runs of a command, after a kill and a resume too, and what a server gets."""

import json
import math
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tracked import (
    CONFIG,
    FINAL,
    ID,
    KEY,
    Training,
    WandbServer,
    home_without_wandb,
    read_offline,
    record,
    records_of,
    steps_in,
    sync,
    wait_for,
    warnings_of,
)

from lmablate.runs.tracking.client import SENT, following, unsent


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


def family(pid):
    """A process and its children, of those that are not dead (a zombie is)."""
    if Path("/proc/self/stat").exists():
        table = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # gone meanwhile
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
                table.append((path.parent.name, parent, state))
    else:
        text = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        table = [tuple(line.split()) for line in text.splitlines()]
    return {int(one) for one, parent, state in table if state[0] != "Z" and pid in (int(one), int(parent))}


def test_one_process_a_command_sends_what_its_runs_write(tmp_path, monkeypatch, capfd, caplog):
    """A run that completes, one that diverges, one that fails, and one that never starts."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    good, bad, broken, never = (Training(tmp_path, letter * 12) for letter in "abcd")
    with following([one.path for one in (good, bad, broken, never)], "offline") as process:
        good.begin().train(*range(600), grad_norm=1e-300)  # more than one block of wandb's file
        bad.begin().train(0).train(1, grad_norm=math.inf)
        broken.begin().train(0)
        wait_for(lambda: all(list(one.path.glob("wandb/*/*.wandb")) for one in (good, bad, broken)))
        assert len(family(process.pid)) == 2  # the follower and wandb-core, for all of them
        good.train(600, val_loss=0.1 + 0.2)
        good.end()
        bad.end(status="diverged", val_loss=None, diverged_at_step=1)
        broken.stop()
    assert not family(process.pid)

    run = read_offline(good.path)
    assert run["history"] == [record(n, grad_norm=1e-300) for n in range(600)] + [record(600, val_loss=0.1 + 0.2)]
    assert (run["run_id"], run["name"], run["group"], run["project"]) == (
        "a" * 12,
        "layer-" + "a" * 12,
        "norms",
        "ablations",
    )
    assert (run["config"], run["exit_code"]) == (CONFIG, 0)
    final = {**FINAL, "status": "completed"}
    assert {key: run["summary"][key] for key in final} == final
    lost = read_offline(bad.path)
    assert math.isnan(lost["history"][1]["grad_norm"])  # history.jsonl has null for what is not finite
    assert (lost["exit_code"], lost["summary"]["val_loss"], lost["summary"]["diverged_at_step"]) == (0, None, 1)
    failed = read_offline(broken.path)
    assert (failed["exit_code"], failed["summary"]["status"], failed["history"]) == (1, "failed", [record(0)])
    assert not (never.path / "wandb").exists() and not any(unsent(one.path) for one in (good, bad, broken, never))

    assert capfd.readouterr() == ("", "") and warnings_of(caplog) == []
    files = [path for path in (good.path / "wandb").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".wandb", ".log"}  # no code, diff, requirements, metadata
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    written = next(path for path in files if path.suffix == ".wandb")
    kinds = {one.WhichOneof("record_type") for one in records_of(written)}
    assert kinds == {"header", "run", "metric", "history", "summary", "telemetry", "exit"}  # no output, hardware, code
    assert b"pytest" not in written.read_bytes()
    assert not any(one.run.host or one.run.HasField("git") for one in records_of(written))


# --- kill and resume ---


def test_a_killed_run_is_continued_without_a_step_twice(tmp_path, server, monkeypatch):
    run = Training(tmp_path)
    with following([run.path], "offline"):
        run.begin().train(*range(7))
        wait_for(lambda: list(run.path.glob("wandb/*/*.wandb")))
        run.stop()
    assert (steps_in(run.path), read_offline(run.path)["exit_code"]) == ([*range(7)], 1)
    run.begin().directory.truncate_history(4)  # of its checkpoint; what comes after is written again
    with following([run.path], "offline"):
        run.train(5, 6, 7)
        run.end()
    merged = read_offline(run.path)
    assert (steps_in(run.path), merged["segments"], merged["exit_code"]) == ([*range(8)], 2, 0)

    monkeypatch.chdir(run.path)  # what wandb's own command makes of the two: one run, every record, in order
    sync("sync", "--yes")
    assert [line["step"] for line in server.runs[ID]["history"]] == [*range(8)]


def test_what_a_killed_follower_did_not_send_is_sent_by_the_next(tmp_path):
    run = Training(tmp_path).begin().train(*range(5))
    with following([run.path], "offline") as process:
        wait_for(lambda: list(run.path.glob("wandb/*/*.wandb")))
        process.kill()
        run.train(5)
        run.end()
    assert unsent(run.path)
    with following([run.path], "offline"):  # the same command again, which has nothing left to train
        pass
    assert sorted({*steps_in(run.path)}) == [*range(6)] and read_offline(run.path)["exit_code"] == 0
    assert not unsent(run.path)


def test_when_the_command_is_killed_its_runs_are_still_sent(tmp_path):
    run = Training(tmp_path).begin().train(0)
    code = f"""
import time
from pathlib import Path
from lmablate.runs.tracking.client import following
with following([Path({str(run.path)!r})], "offline") as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    follower = int(command.stdout.readline())
    wait_for(lambda: list(run.path.glob("wandb/*/*.wandb")))
    command.send_signal(signal.SIGKILL)
    command.wait()
    run.train(1)  # it writes its checkpoint
    run.stop()
    wait_for(lambda: not family(follower))
    assert (steps_in(run.path), read_offline(run.path)["exit_code"]) == ([0, 1], 1)


# --- online ---


def test_online_sends_the_records_and_a_resumed_run_continues(tmp_path, server, caplog, capfd):
    one, other = Training(tmp_path), Training(tmp_path, "b" * 12)
    with following([one.path, other.path], "online"):
        one.begin().train(0, 1, 2)
        other.begin().train(0)
        wait_for(lambda: len(server.runs) == 2)
        one.stop()
        other.end()
    run = server.runs[ID]
    sent = [{key: value for key, value in line.items() if key[0] != "_"} for line in run["history"]]
    assert sent == [record(step) for step in range(3)] and run["exit_code"] == 1
    assert server.runs["b" * 12]["exit_code"] == 0
    assert (run["upsert"]["groupName"], run["upsert"]["displayName"]) == ("norms", f"layer-{ID}")
    assert not any(run["upsert"][key] for key in ("host", "program", "commit", "repo"))
    config = json.loads(run["config"])
    assert {key: config[key]["value"] for key in CONFIG} == CONFIG
    tokens, every = config["_wandb"]["value"]["m"]
    assert (tokens["1"], every["2"], every["5"]) == ("tokens", "*", 1)  # every chart over the first metric, tokens
    assert {path.rpartition("/")[2] for path in server.paths} == {"graphql", "file_stream"}  # no reports to anybody

    (one.path / SENT).unlink()  # the server knows what it has
    one.begin().directory.truncate_history(1)
    with following([one.path], "online"):
        one.train(2, 3)
        one.end(val_loss=2.5)
    assert [line["step"] for line in run["history"]] == [0, 1, 2, 3]
    assert json.loads(run["summary"])["val_loss"] == 2.5 and run["exit_code"] == 0
    assert warnings_of(caplog) == [] and capfd.readouterr() == ("", "")
