"""Has a source changed since it was last read? Asked without reading it."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Stamp(NamedTuple):
    """`facts` (JSON) are equal only if the text is; `settled` says that they can be trusted to show the next change."""

    facts: Any
    settled: bool


# A file changed again within its file system's clock tick, at equal size, would look the same.
_TICK_NS = 2_000_000_000


def stamp_files(paths: Iterable[Path]) -> Stamp:
    """Place, size and times of each file."""
    facts = []
    newest = 0
    for path in paths:
        status = path.stat()
        facts.append([str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
        newest = max(newest, status.st_mtime_ns)
    return Stamp(facts, settled=newest < time.time_ns() - _TICK_NS)
