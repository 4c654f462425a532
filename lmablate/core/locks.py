"""One process at a time works on a run, on one machine or on many that share a folder, and no server watches over it.

The lock is flock(2) on a file that is never removed (a removed one could be locked twice, under two inodes). The kernel frees it when its
owner ends, however it ends. On NFS Linux passes it on to the server as a lock on the whole file (since 2.6.12; NFSv3 needs lockd,
NFSv4 nothing), and the server frees it when a machine dies: NFSv4 after its lease (90 seconds by default), NFSv3 when the machine is back.
Mounted with ``nolock`` or ``local_lock``, it holds within one machine only, which cannot be told from here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmablate.core.files import read_json

log = logging.getLogger(__name__)
NAME = ".lock"  # in a run's folder
PATIENCE = 0.3  # seconds; whoever asks whether a lock is held has it for an instant
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_BUSY = {errno.EWOULDBLOCK, errno.EACCES}
_told: set[str] = set()


class LockHeld(Exception):
    """Another process has the lock; the message says which, as far as it is known."""


class FileLock:
    """An exclusive lock on a file, from `take` until `release` or the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd

    @classmethod
    def acquire(cls, path: Path, patience: float = PATIENCE) -> FileLock:
        """Raises LockHeld if another process keeps it for longer than `patience` seconds.

        Where the file system has no locks there is a warning, and none is held.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # another user's, who may be at work all the same
            if is_held(path):
                raise LockHeld(_words(path)) from None
            raise
        deadline = time.monotonic() + patience
        try:
            while not _locked(fd, fcntl.LOCK_EX, path):
                if time.monotonic() >= deadline:
                    raise LockHeld(_words(path))
                time.sleep(0.02)
            with suppress(OSError):  # a full disk: who it is, is for display alone
                said = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
                os.pwrite(fd, said, 0)
                os.ftruncate(fd, len(said))
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def check(self) -> None:
        """Raise FileNotFoundError if the file has been removed or replaced: then the folder is not ours any more."""
        try:
            there, mine = os.stat(self.path), os.fstat(self.fd)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise FileNotFoundError(
                errno.ENOENT, "the folder was removed or replaced while the run was at work", str(self.path.parent)
            )

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def is_held(path: Path) -> bool | None:
    """Does a living process hold the lock? None where the file system cannot say."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _BUSY else None
    finally:
        os.close(fd)
    return False


def owner(path: Path) -> dict[str, Any]:
    """Who had the lock last: `host` and `pid`, or nothing."""
    try:
        said = read_json(path)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _locked(fd: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        place = str(path.parent.parent)
        if place not in _told:
            _told.add(place)
            log.warning("%s: this file system has no locks (%s); let one sweep at a time use it", place, error.strerror)
    return True


def _words(path: Path) -> str:
    who = owner(path)
    known = f" (process {who['pid']} on {who['host']})" if {"pid", "host"} <= set(who) else ""
    return f"another process is at work on {path.parent}{known}"
