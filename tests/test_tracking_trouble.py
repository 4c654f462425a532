"""wandb in trouble: training never waits for it, the user hears of it once, and nothing is lost that can be kept."""

import logging
import shlex
import signal
import subprocess
import threading
import time

import pytest
from tracked import (
    ID,
    KEY,
    SilentServer,
    Training,
    WandbServer,
    home_without_wandb,
    read_offline,
    record,
    steps_in,
    sync,
    wait_for,
    warnings_of,
)

from lmablate.core.locks import FileLock
from lmablate.runs.tracking.client import following, read_sent, send_anew, unsent
from lmablate.runs.tracking.follower import LOCK, FollowedRun, WandbSession


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


@pytest.mark.parametrize("key", [KEY, None], ids=["refuses", "no key"])
def test_a_server_that_does_not_take_a_run_means_offline_for_all_with_one_warning(tmp_path, monkeypatch, caplog, key):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    runs = [Training(tmp_path, letter * 12).begin().train(0, 1) for letter in "ab"]
    began = time.monotonic()
    with following([one.path for one in runs], "online", start_seconds=2):
        assert time.monotonic() - began < 0.5
        for one in runs:
            one.end()
    assert [steps_in(one.path) for one in runs] == [[0, 1], [0, 1]]
    (warning,) = warnings_of(caplog)
    assert "kept offline" in warning and KEY not in warning
    assert key or "key" in warning


@pytest.mark.slow
def test_a_server_that_never_answers_does_not_hold_up_the_end_of_a_run(tmp_path, monkeypatch, caplog):
    server = SilentServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = Training(tmp_path).begin().train(0)
    with following([run.path], "online", start_seconds=60, end_seconds=4):
        run.end()
        began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 6
    (warning,) = warnings_of(caplog)
    assert "the same command sends the rest" in warning and unsent(run.path)


@pytest.mark.slow
def test_a_server_lost_in_mid_run_costs_a_bounded_end_and_no_record(tmp_path, server, monkeypatch, caplog):
    run = Training(tmp_path).begin().train(0)
    with following([run.path], "online", end_seconds=5):
        assert server.started.wait(15)
        server.stop()
        run.train(*range(1, 20))
        run.end()
        began = time.monotonic()
    assert time.monotonic() - began < 7
    (warning,) = warnings_of(caplog)
    assert read_offline(run.path)["history"] == [record(step) for step in range(20)]

    again = WandbServer()  # both that the warning advises work
    monkeypatch.setenv("WANDB_BASE_URL", again.url)
    sync(*shlex.split(warning.split("`")[1])[1:])
    assert [line["step"] for line in again.runs[ID]["history"]] == [*range(20)]
    again.runs[ID]["history"][:] = again.runs[ID]["history"][:5]
    again.runs[ID]["summary"] = '{"step": 4}'
    with following([run.path], "online"):
        pass
    again.stop()
    assert [line["step"] for line in again.runs[ID]["history"]] == [*range(20)] and not unsent(run.path)


# --- when wandb fails ---


def test_a_failure_of_one_run_is_said_once_and_costs_no_other(tmp_path, caplog):
    blocked, free = Training(tmp_path, "a" * 12), Training(tmp_path, "b" * 12)
    (blocked.path / "wandb").write_text("in the way")
    with following([blocked.path, free.path], "offline") as process:
        for one in (blocked, free):
            one.begin().train(0)
        wait_for(lambda: list(free.path.glob("wandb/*/*.wandb")))
        (core,) = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        subprocess.run(["kill", "-9", core], check=True)
        for one in (blocked, free):
            one.end()
    (warning,) = warnings_of(caplog)
    assert f"stopped at run {'a' * 12}" in warning and "training goes on without it" in warning
    assert "exists" in warning.lower()


def test_a_hanging_follower_holds_up_the_end_for_a_bounded_time(tmp_path, caplog):
    run = Training(tmp_path).begin().train(0)
    with following([run.path], "offline", end_seconds=0.5) as process:
        process.send_signal(signal.SIGSTOP)
        run.end()
        began = time.monotonic()
    assert time.monotonic() - began < 2 and process.poll() is not None
    (warning,) = warnings_of(caplog)
    assert "not done 0.5 s after the end of the runs" in warning


@pytest.mark.parametrize(
    ("what", "error"),
    [("subprocess.Popen", OSError("no more processes")), ("threading.Thread.start", RuntimeError("no thread"))],
)
def test_a_machine_without_processes_or_threads_means_no_wandb(tmp_path, monkeypatch, caplog, what, error):
    def refuse(*args, **options):
        raise error

    run = Training(tmp_path).begin()
    with monkeypatch.context() as full:
        full.setattr(what, refuse)
        with following([run.path], "offline"):
            run.end()
    (warning,) = warnings_of(caplog)
    assert "training goes on without it" in warning


# --- which run is sent when, without wandb ---


class Fake:
    """In the place of wandb: what it was given, and whether that was ended, run by run."""

    mode, resumed, dir = "offline", False, "x"

    def __init__(self):
        self.sent, self.ended, self.summary, self.said, self.open = [], [], {}, [], set()

    def begin(self, folder, run):
        return self

    def log(self, line):
        self.sent.append(line["step"])

    def finish(self, exit_code):
        self.ended.append(exit_code)

    def warn_once(self, kind, text):
        self.said.append(text)


@pytest.fixture
def run(tmp_path):
    return Training(tmp_path)


@pytest.fixture
def followed(run, monkeypatch):
    class AtOnce(threading.Thread):
        def start(self):
            self.run()

        def is_alive(self):
            return False

    monkeypatch.setattr("lmablate.runs.tracking.follower.threading.Thread", AtOnce)
    return FollowedRun(run.path, Fake())


def test_a_run_whose_server_is_lost_beside_others_is_left_to_the_next_command(tmp_path, monkeypatch):
    """wandb has its id in use until the others are ended, and they may still get through."""
    service = WandbSession("online", 1, 1)
    monkeypatch.setattr(service, "_init", lambda folder, run: 1 / 0)
    service.open.add(tmp_path / "other")
    with pytest.raises(ZeroDivisionError):
        service.begin(tmp_path, {})
    assert service.mode == "offline"


def test_a_run_that_is_tried_again_is_continued(run, followed):
    run.begin().train(0, 1)
    assert followed.look(over=False) and followed.service.sent == [0, 1]
    run.stop()
    assert followed.look(over=False) and followed.service.ended == [1]
    assert followed.look(over=False) and followed.service.ended == [1]  # once
    run.begin().directory.truncate_history(0)
    run.train(1, 2)
    followed.look(over=False)
    run.end()
    followed.look(over=False)
    assert (followed.service.sent, followed.service.ended) == ([0, 1, 2], [1, 0])
    assert not followed.look(over=False) and not unsent(run.path)


def test_lines_that_are_torn_or_rewritten_are_sent_once_they_are_whole(run, followed):
    run.begin().train(0)
    followed.look(over=False)
    with run.directory.history_path.open("ab") as file:
        file.write(b'{"step": 1, "tok')
    followed.look(over=False)
    assert followed.service.sent == [0]
    run.directory.truncate_history(0)
    run.train(1, 2)
    followed.look(over=False)
    assert followed.service.sent == [0, 1, 2]


def test_what_an_earlier_attempt_left_is_taken_for_this_one_only_at_the_end(run, followed):
    """The run has its lock, and has not yet said what it is called now."""
    run.begin().train(0)
    run.stop()
    time.sleep(0.01)
    run.lock = FileLock.acquire(run.directory.lock_path)
    assert followed.look(over=False) and followed.service.sent == []
    run.stop()
    assert followed.look(over=False) and followed.service.sent == []
    assert followed.look(over=True) and (followed.service.sent, followed.service.ended) == ([0], [1])
    assert not followed.look(over=True)


def test_a_run_that_another_follower_sends_is_left_to_it(run, followed):
    run.begin().train(0)
    other = FileLock.acquire(run.path / LOCK)
    assert followed.look(over=False) and not followed.look(over=True) and followed.service.sent == []
    other.release()
    assert followed.look(over=False) and followed.service.sent == [0]


def test_a_finished_run_that_is_made_again_is_sent_anew_when_that_is_done(run, followed):
    run.begin().train(0, 1)
    followed.look(over=False)
    run.end()
    followed.look(over=False)
    again = FollowedRun(run.path, Fake())
    run.begin()
    assert again.look(over=False) and again.service.sent == []
    send_anew(run.path)
    run.end(val_loss=1.0)
    again.look(over=False)
    assert (again.service.sent, again.service.ended, again.service.summary["val_loss"]) == ([0, 1], [0], 1.0)


def test_without_locks_the_end_of_a_run_is_its_result_or_that_of_the_command(run, followed, monkeypatch):
    run.begin().train(0)
    monkeypatch.setattr("lmablate.runs.tracking.follower.is_held", lambda path: None)
    assert followed.look(over=False) and (followed.service.sent, followed.service.ended) == ([0], [])
    assert followed.look(over=True) and followed.service.ended == [1]
    run.train(1)
    run.end()
    assert followed.look(over=False) and (followed.service.sent, followed.service.ended) == ([0, 1], [1, 0])


def test_what_is_sent_is_confirmed_later_than_it_is_sent(run, followed, monkeypatch):
    """So that after a kill too little is taken for sent, and never too much."""
    monkeypatch.setattr("lmablate.runs.tracking.follower.CONFIRM_SECONDS", 0)
    run.begin()
    confirmed = []
    for step in range(3):
        run.train(step)
        followed.look(over=False)
        confirmed.append(read_sent(run.path).get("step"))
    assert confirmed == [-1, 0, 1]


def test_the_run_of_another_user_is_left_to_them(run, monkeypatch):
    run.begin().end()
    assert unsent(run.path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert not unsent(run.path)


def test_a_disk_that_is_full_costs_wandb_alone(run, monkeypatch, caplog):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmablate.runs.tracking.client.atomic_write", full)
    caplog.set_level(logging.WARNING)
    run.begin().end()
    (warning,) = warnings_of(caplog)
    assert "this run goes on without it" in warning and not unsent(run.path)
