"""Guard stdout and stderr of a command, so that their failure costs the output, and never the work.

A reader may close the pipe (``| head``), a disk may be full, an encoding may lack a character, a stream may be missing
(``>&-``). Output that a stream cannot take is dropped; a character that it cannot encode is shown by its code.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from lmablate.core.secrets import redacted

NAMES = ("stdout", "stderr")


class Guarded:
    """A text stream that redacts secrets and never fails. Output of child processes bypasses it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        shown = redacted(text)
        try:
            self._try(lambda: self._stream.write(shown))
        except UnicodeEncodeError:  # a stream that cannot be reconfigured to show codes
            self._try(lambda: self._stream.write(shown.encode("ascii", "backslashreplace").decode()))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError) as error:  # the latter: it was closed
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Redirect the stream to /dev/null, also for Python's buffers, and report it on stderr unless the reader closed it."""
        with suppress(OSError, ValueError):
            number, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
            if number == 1 and getattr(error, "errno", None) not in (errno.EPIPE, None):
                os.write(2, f"stdout: {error.strerror}; the rest is not shown\n".encode())  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Replace stdout and stderr by guarded streams. More than once is harmless."""
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, Guarded):
            continue
        if stream is None:
            stream = _nowhere()
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        guarded = Guarded(stream)
        setattr(sys, name, guarded)
        if stream is getattr(sys, f"__{name}__"):
            atexit.register(guarded.flush)  # the last flush may fail as well


def _nowhere() -> TextIO:
    """Return a stream to /dev/null for one that was closed. Its number stays taken, so that no file of a run gets it."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 2:
        pass
    return os.fdopen(number, "w")
