"""Checks and their findings."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lmablate.check.subject import Subject

HOLDS, FAILS, SKIPPED = "holds", "does not hold", "not asked"
_HOME = Path(__file__).parents[1]


class Finding(NamedTuple):
    """The result of one check: HOLDS, FAILS or SKIPPED, and a note."""

    status: str
    note: str = ""


def holds(note: str = "") -> Finding:
    """Return the finding of a check that holds."""
    return Finding(HOLDS, note)


def fails(note: str) -> Finding:
    """Return the finding of a check that fails."""
    return Finding(FAILS, note)


def skips(note: str) -> Finding:
    """Return the finding of a check that does not apply."""
    return Finding(SKIPPED, note)


@dataclass(frozen=True)
class Check:
    """A property of an option. `cost`: the consequence for an experiment if it does not hold; `mend`: how to fix it."""

    name: str
    asks: str
    cost: str
    mend: str
    function: Callable[[Subject], Finding]

    def __call__(self, subject: Subject) -> Finding:
        """Run the check. An option that raises an error does not hold."""
        try:
            return self.function(subject)
        except Exception as error:
            return fails(f"stops with {type(error).__name__}: {error}{_location(error)}")


def check(name: str, *, asks: str, cost: str, mend: str) -> Callable[[Callable[[Subject], Finding]], Check]:
    """Return a decorator that makes a Check of a function."""
    return lambda function: Check(name, asks, cost, mend, function)


def _location(error: Exception) -> str:
    """Return the last line of the traceback outside torch and this package's checks, or ""."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_component(Path(frame.filename))]
    return f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def _is_component(path: Path) -> bool:
    return "site-packages" not in path.parts and _HOME / "check" not in path.parents and path.is_file()
