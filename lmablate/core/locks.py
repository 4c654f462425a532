"""Lock a run so that one process at a time works on it, on one machine or on many that share a folder, without a
server.

The lock is flock(2) on a file that is never removed (a removed one could be locked twice, under two inodes). The kernel
frees it when its owner ends, however it ends. On NFS, Linux forwards it to the server as a lock on the whole file
(since 2.6.12; NFSv3 needs lockd, NFSv4 nothing), and the server frees it when a machine dies: NFSv4 after its lease (90
seconds by default), NFSv3 when the machine is back. Mounted with ``nolock`` or ``local_lock``, it holds within one
machine only, which cannot be detected here.
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
PATIENCE = 0.3  # seconds; `is_held` holds a lock for an instant
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_BUSY = {errno.EWOULDBLOCK, errno.EACCES}
_warned: set[str] = set()


class LockHeld(Exception):
    """The error of a lock that another process holds. The message names it as far as it is known."""


class FileLock:
    """An exclusive lock on a file, from `acquire` until `release` or the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd

    @classmethod
    def acquire(cls, path: Path, patience: float = PATIENCE) -> FileLock:
        """Acquire the lock of `path`, waiting `patience` seconds. Raises LockHeld if another process keeps it for
        longer. On a file system without locks there is a warning, and none is held."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:  # it belongs to another user, who may be at work
            if is_held(path):
                raise LockHeld(_message(path)) from None
            raise
        deadline = time.monotonic() + patience
        try:
            while not _locked(fd, fcntl.LOCK_EX, path):
                if time.monotonic() >= deadline:
                    raise LockHeld(_message(path))
                time.sleep(0.02)
            with suppress(OSError):  # a full disk: the owner's name is only for display
                content = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
                os.pwrite(fd, content, 0)
                os.ftruncate(fd, len(content))
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def check(self) -> None:
        """Raise FileNotFoundError if the file has been removed or replaced, so that the folder is no longer ours."""
        try:
            there, mine = os.stat(self.path), os.fstat(self.fd)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise FileNotFoundError(
                errno.ENOENT, "the folder was removed or replaced while the run was at work", str(self.path.parent)
            )

    def release(self) -> None:
        """Release the lock."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def is_held(path: Path) -> bool | None:
    """Return whether a living process holds the lock; None if the file system cannot tell."""
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
    """Return `host` and `pid` of the last owner of the lock, or an empty dictionary."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _locked(fd: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        place = str(path.parent.parent)
        if place not in _warned:
            _warned.add(place)
            log.warning("%s: this file system has no locks (%s); let one sweep at a time use it", place, error.strerror)
    return True


def _message(path: Path) -> str:
    who = owner(path)
    known = f" (process {who['pid']} on {who['host']})" if {"pid", "host"} <= set(who) else ""
    return f"another process is at work on {path.parent}{known}"
