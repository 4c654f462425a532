"""What a check is, and what it finds."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lmablate.check.subject import Subject

HOLDS, FAILS, NOT_ASKED = "holds", "does not hold", "not asked"
_HOME = Path(__file__).parents[1]


class Finding(NamedTuple):
    """The result of one check: HOLDS, FAILS or NOT_ASKED, and a note in words."""

    status: str
    note: str = ""


def holds(note: str = "") -> Finding:
    return Finding(HOLDS, note)


def fails(note: str) -> Finding:
    return Finding(FAILS, note)


def not_asked(note: str) -> Finding:
    return Finding(NOT_ASKED, note)


@dataclass(frozen=True)
class Check:
    """A question to an option. `cost` is what an experiment pays where the answer is no, `mend` how to change that."""

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
            return fails(f"stops with {type(error).__name__}: {error}{_place(error)}")


def check(name: str, *, asks: str, cost: str, mend: str) -> Callable[[Callable[[Subject], Finding]], Check]:
    """Make a check of a function."""
    return lambda function: Check(name, asks, cost, mend, function)


def _place(error: Exception) -> str:
    """The last line of the traceback that is neither torch's nor of this package's checks."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_a_part(Path(frame.filename))]
    return f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def _is_of_a_part(path: Path) -> bool:
    return "site-packages" not in path.parts and _HOME / "check" not in path.parents and path.is_file()
