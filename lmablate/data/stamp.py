"""Stamps that show whether a source has changed, without reading it."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Stamp(NamedTuple):
    """The state of a source: `content` (JSON) is equal only if the text is; `settled` if they would show the next change."""

    content: Any
    settled: bool


# A file changed twice within a clock tick of its file system, at equal size, looks the same.
_TICK_NS = 2_000_000_000


def stamp_files(paths: Iterable[Path]) -> Stamp:
    """Return path, size and times of each file as a stamp."""
    files = []
    newest = 0
    for path in paths:
        status = path.stat()
        files.append([str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
        newest = max(newest, status.st_mtime_ns)
    return Stamp(files, settled=newest < time.time_ns() - _TICK_NS)
