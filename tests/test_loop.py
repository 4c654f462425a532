"""The scheduler's loop with processes that are made up: time limits, retries, runs that another sweep trains, stops."""

import os
import signal
from types import SimpleNamespace

import pytest

from lmablate.core.locks import FileLock
from lmablate.launcher import job_files, loop, running_job
from lmablate.launcher.loop import Loop
from lmablate.launcher.slots import Slots
from lmablate.runs import recovery
from lmablate.runs.run_directory import RunDirectory


class Fake:
    """A process: `script` says what poll answers, turn by turn; the last answer stays."""

    lost = False
    pid = 0

    def __init__(self, script, hears=True):
        self.script, self.hears, self.got = list(script), hears, []

    def poll(self):
        if signal.SIGKILL in self.got:
            return -signal.SIGKILL
        if self.hears and signal.SIGTERM in self.got:
            return 143
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def send(self, number):
        self.got.append(number)


class FakeEngine:
    """Starts the next of some made-up processes; `clock` moves with every pause."""

    def __init__(self, clock, *processes, on_pause=lambda: None):
        self.clock, self.processes, self.on_pause = clock, list(processes), on_pause
        self.started, self.stopped = [], False

    def ready(self):
        return True

    def next(self, queue):
        return 0

    def start(self, jobs, slot):
        self.started.append([job.run_id for job in jobs])
        return self.processes.pop(0)

    def stop(self):
        self.stopped = True

    def pause(self, seconds):
        self.clock.now += 1.0
        self.on_pause()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class FakeBoard:
    def __init__(self):
        self.status, self.said, self.ended = {}, [], {}

    def started(self, job):
        pass

    def update(self, job, status):
        pass

    def print_line(self, text):
        self.said.append(text)

    def stopping(self):
        self.said.append("stopping")

    def finished(self, job, verdict):
        self.ended[job.run_id] = verdict


class FakeJob:
    def __init__(self, folder, run_id, **runtime):
        known = {"time_limit": None, "retries": None, "gpu_memory": None, "on_oom": None, "microbatch_size": None}
        self.run_id, self.label, self.result = run_id, run_id, False
        self.cfg = SimpleNamespace(
            results_dir=str(folder),
            trainer=SimpleNamespace(steps=9, batch_size=8),
            model=SimpleNamespace(context_length=16),
            runtime=SimpleNamespace(**known | runtime),
        )
        self.directory = RunDirectory(folder, run_id)

    @property
    def done(self):
        return self.result


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(now=1000.0)
    for module in (loop, running_job):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.now))
    monkeypatch.setattr(job_files, "write_config", lambda cfg, path: path.write_text("config"))
    monkeypatch.setattr(recovery, "oom_kills", lambda: 5)
    return now


def sweep(engine, *jobs, slots=2):
    board = FakeBoard()
    code = Loop([[job] for job in jobs], board, Slots(slots), engine).run()
    return code, board


def test_a_job_that_hangs_is_stopped_killed_if_deaf_and_harms_no_other(tmp_path, clock):
    hangs, deaf, good = (FakeJob(tmp_path, f"{i}" * 8, time_limit=20.0) for i in range(3))
    done = Fake([None, 0])
    done.poll = lambda: setattr(good, "result", True) or 0
    processes = [Fake([None]), Fake([None], hears=False), done]
    engine = FakeEngine(clock, *processes)
    code, board = sweep(engine, hangs, deaf, good)
    assert code == 0
    assert board.ended[good.run_id] == {"state": "done"}
    for job in (hangs, deaf):
        assert board.ended[job.run_id]["error"].startswith("not done within runtime.time_limit=20 seconds")
        assert job.directory.read_status()["kind"] == "time_limit"
    assert processes[0].got == [signal.SIGTERM]
    assert processes[1].got == [signal.SIGTERM, signal.SIGKILL]


def test_a_failed_job_is_tried_again_as_often_as_asked(tmp_path, clock):
    job = FakeJob(tmp_path, "aaaaaaaa", retries=2)
    engine = FakeEngine(clock, *[Fake([-signal.SIGSEGV]) for _ in range(3)])
    _, board = sweep(engine, job)
    assert len(engine.started) == 3
    assert board.ended["aaaaaaaa"]["error"] == "killed by SIGSEGV"
    assert [line.rpartition("; ")[2] for line in board.said] == ["retry 1 of 2", "retry 2 of 2"]


def test_a_mistake_in_words_is_not_tried_again(tmp_path, clock):
    job = FakeJob(tmp_path, "aaaaaaaa", retries=2)
    process = Fake([None, 1])
    real = process.poll

    def poll():
        job.directory.write_status({"state": "failed", "error": "ConfigError: no", "kind": recovery.CONFIG})
        return real()

    process.poll = poll
    engine = FakeEngine(clock, process)
    _, board = sweep(engine, job)
    assert len(engine.started) == 1
    assert board.ended["aaaaaaaa"]["error"] == "ConfigError: no"


def test_what_the_kernel_killed_for_memory_goes_on_with_less_where_that_is_asked_for(tmp_path, clock, monkeypatch):
    kills = iter(range(100))
    monkeypatch.setattr(recovery, "oom_kills", lambda: next(kills))
    job = FakeJob(tmp_path, "aaaaaaaa", retries=5)
    engine = FakeEngine(clock, Fake([-signal.SIGKILL]))
    _, board = sweep(engine, job)
    verdict = board.ended["aaaaaaaa"]
    assert "for lack of memory: 8 sequences of 16 tokens in one pass" in verdict["error"]
    assert verdict["tried"] == {"microbatch_size": 8, "context_length": 16}
    assert len(engine.started) == 1


def test_a_run_that_another_sweep_trains_is_waited_for_and_never_started(tmp_path, clock):
    job, other = FakeJob(tmp_path, "aaaaaaaa"), FakeJob(tmp_path, "bbbbbbbb")
    job.directory.create()
    lock = FileLock.acquire(job.directory.lock_path)
    good = Fake([0])
    good.poll = lambda: setattr(other, "result", True) or 0

    def finish_elsewhere():
        if clock.now > 1010:
            job.result = True

    engine = FakeEngine(clock, good, on_pause=finish_elsewhere)
    _, board = sweep(engine, job, other)
    lock.release()
    assert engine.started == [["bbbbbbbb"]]
    assert board.ended == {"aaaaaaaa": {"state": "done"}, "bbbbbbbb": {"state": "done"}}
    assert "trains it" in board.said[0]


@pytest.mark.parametrize("how", ["locked before", "lost the race"])
def test_a_run_whose_other_trainer_is_killed_is_taken_over(tmp_path, clock, how):
    job = FakeJob(tmp_path, "aaaaaaaa")
    good = Fake([0])
    good.poll = lambda: setattr(job, "result", True) or 0
    processes = [good]
    if how == "locked before":
        job.directory.create()
        lock = FileLock.acquire(job.directory.lock_path)
        engine = FakeEngine(clock, *processes, on_pause=lambda: clock.now > 1005 and lock.release())
    else:
        engine = FakeEngine(clock, Fake([recovery.HELD]), *processes)
    _, board = sweep(engine, job)
    assert engine.started[-1] == ["aaaaaaaa"]
    assert board.ended["aaaaaaaa"] == {"state": "done"}


def test_a_stop_is_handed_on_and_who_does_not_listen_is_killed(tmp_path, clock):
    jobs = [FakeJob(tmp_path, f"{i}" * 8) for i in range(3)]
    good, deaf = Fake([None]), Fake([None], hears=False)
    sent = []

    def stop():
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    engine = FakeEngine(clock, good, deaf, on_pause=stop)
    code, board = sweep(engine, *jobs)
    assert code == signal.SIGTERM
    assert engine.stopped and len(engine.started) == 2
    assert board.said == ["stopping"]  # once, and at once
    assert good.got == [signal.SIGTERM]
    assert deaf.got == [signal.SIGTERM, signal.SIGKILL]
    assert clock.now > 1000 + loop.STOP_SECONDS
    assert board.ended[jobs[0].run_id] == {"state": "stopped"}
    assert jobs[0].directory.read_status()["state"] == "stopped"
    assert not jobs[2].directory.path.exists()


def test_a_sweep_whose_folder_cannot_be_written_ends_in_words(tmp_path, clock):
    (tmp_path / "file").write_text("")
    jobs = [FakeJob(tmp_path / "file", f"{i}" * 8) for i in range(3)]
    engine = FakeEngine(clock)
    _, board = sweep(engine, *jobs, slots=1)
    assert not engine.started
    assert len(board.ended) == 3
    reasons = ("not a directory", "file exists")
    assert all(any(one in verdict["error"] for one in reasons) for verdict in board.ended.values())


def test_nothing_of_a_launcher_is_left_behind(tmp_path, clock):
    job = FakeJob(tmp_path, "aaaaaaaa")
    seen = []
    process = Fake([0])

    def poll():
        seen.extend(path.name for path in job.directory.path.glob(".asked-*"))
        job.result = True
        return 0

    process.poll = poll
    sweep(FakeEngine(clock, process), job)
    assert seen == [f".asked-{job_files.launcher_name()}.yaml"]
    assert sorted(path.name for path in job.directory.path.iterdir()) == [".lock", "config.yaml", "status.json"]
