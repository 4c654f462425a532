"""Locks that free themselves when their owner ends, and files that are whole or not there."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from lmablate.core import files, locks
from lmablate.core.files import append_line, atomic_write, read_jsonl
from lmablate.core.locks import FileLock, LockHeld, is_held, owner
from lmablate.runs.progress_file import age
from lmablate.runs.run_directory import RunDirectory

HOLDER = """
import sys, time
from pathlib import Path
from lmablate.core.locks import FileLock
FileLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_is_held_until_its_owner_is_killed(tmp_path, holder):
    path = tmp_path / ".lock"
    assert is_held(path) is True
    assert owner(path)["pid"] == holder.pid
    with pytest.raises(LockHeld, match=f"process {holder.pid} on "):
        FileLock.acquire(path, patience=0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert is_held(path) is False
    mine = FileLock.acquire(path)
    assert owner(path)["pid"] == os.getpid()
    assert is_held(path)
    mine.release()
    assert not is_held(path)


def test_a_lock_outlives_no_release_and_asking_takes_nothing(tmp_path):
    path = tmp_path / ".lock"
    assert is_held(path) is False
    assert not path.exists()
    first = FileLock.acquire(path)
    with pytest.raises(LockHeld):
        FileLock.acquire(path, patience=0)
    first.release()
    FileLock.acquire(path, patience=0).release()


def test_a_folder_that_is_removed_or_replaced_is_noticed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FileLock.acquire(folder / ".lock")
    lock.check()
    folder.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        lock.check()
    folder.mkdir()
    FileLock.acquire(folder / ".lock").release()
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        lock.check()


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def none(fd, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    FileLock.acquire(tmp_path / ".lock").release()
    assert "has no locks" in caplog.text
    assert is_held(tmp_path / ".lock") is None


def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    append_line(path, b'{"step": 1}')
    real, room = os.write, [4]

    def full(fd, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(path, b'{"step": 2}')
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert path.read_bytes() == b'{"step": 1}\n'
    path.write_bytes(b'{"step": 1}\n{"st')  # a kill tore it
    assert read_jsonl(path) == [{"step": 1}]
    append_line(path, b'{"step": 2}')
    assert path.read_bytes() == b'{"step": 1}\n{"st\n{"step": 2}\n'


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic_write(path, "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def test_what_is_not_durable_is_replaced_whole_and_not_flushed(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, "0" * 12)
    run.write_status({"step": 1})

    def flushed(fd):
        raise AssertionError("a heartbeat waits for no disk")

    monkeypatch.setattr(files.os, "fsync", flushed)
    run.write_status({"step": 2})
    monkeypatch.setattr(files.os, "replace", lambda *paths: flushed(0))
    with pytest.raises(AssertionError):
        run.write_status({"step": 3})
    assert [one.name for one in run.path.iterdir()] == ["status.json"]
    assert run.read_status() == {"step": 2}


def test_the_age_of_a_heartbeat_is_told_by_no_clock_of_its_writer(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, "0" * 12)
    assert age(run) is None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e9)
    run.write_status({"state": "running", "time": 0.0, "uptime": 10**400})
    monkeypatch.undo()
    assert 0 <= age(run) < 60
    os.utime(run.status_path, (real(), real() - 90))
    assert age(run) == pytest.approx(90, abs=20)
    os.utime(run.status_path, (real(), real() + 90))  # a clock ahead of ours: no age below zero
    assert age(run) == 0.0
