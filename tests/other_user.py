"""Another user's files, seen without root's powers: on Linux a thread can lay them down and take them up again."""

import ctypes
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
POWERS = 0b1111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
ROOT = os.geteuid() == 0


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def without_powers():
    """Root is an ordinary user in here; skips the test where that cannot be."""
    if not ROOT:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root's powers can be laid down on Linux alone")
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        pytest.skip("this system does not tell a thread's capabilities")
    before = sets[0].effective
    sets[0].effective &= ~POWERS
    if libc.capset(ctypes.byref(header), sets):
        pytest.skip("this system does not let a thread lay its powers down")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)


def give_away(path: Path, mode: int) -> None:
    """Make `path` and what is in it another user's, and `path` itself of this mode, of which others have the last digit."""
    if ROOT:
        for each in (path, *path.rglob("*")):
            os.chown(each, NOBODY, NOBODY)
    else:  # to an owner without rights a file is as closed as to others
        mode = (mode & 0o7) * 0o111
    path.chmod(mode)
