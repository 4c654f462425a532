"""Choose one row of each run that several results folders hold, and explain the choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmablate.core import access
from lmablate.results.folders import numerics_text
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import is_stale
from lmablate.schema.result import RunResult

NAMED = 6  # most runs that are named one by one


class Copy(NamedTuple):
    """The row of a run in one folder."""

    folder: Path
    row: RunResult

    @property
    def worth(self) -> tuple[bool, int, bool, bool, int]:
        """Return a sorting key: the largest copy is taken, of equal ones the first. Loss and divergence do not count,
        since that would choose by the outcome."""
        return (
            not is_stale(self.row.science_version, self.row.code),
            self.row.science_version,
            self.row.status != "failed",
            bool(access.there(RunDirectory(self.folder, self.row.run_id).history_path)),
            len(self.row.diagnostics or ()),
        )


class Choice(NamedTuple):
    """A run in several folders: the copy that is taken, and the others."""

    taken: Copy
    left: list[Copy]


def choices(folders: Sequence[Path]) -> dict[str, Choice]:
    """Return the runs with a readable result in more than one of `folders`, by run id."""
    return {run_id: _chosen(copies) for run_id, copies in _copies(folders).items() if len(copies) > 1}


def counted(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder whose copy counts of each run that is in several `folders` and done in one."""
    return {run_id: _chosen(copies).taken.folder for run_id, copies in _copies(folders).items()}


def _copies(folders: Sequence[Path]) -> dict[str, list[Copy]]:
    """Return the readable results of each run in more than one folder, even if only one folder has its result."""
    if len(folders) < 2:
        return {}
    marks = ("*/result.json", "*/history.jsonl")
    names = [{path.parent.name for mark in marks for path in folder.glob(mark)} for folder in folders]
    out: dict[str, list[Copy]] = {}
    for run_id in sorted({name for own in names for name in own if sum(name in other for other in names) > 1}):
        for folder in folders:
            row = RunDirectory(folder, run_id).read_result()
            if row is not None and row.run_id == run_id:
                out.setdefault(run_id, []).append(Copy(folder, row))
    return out


def _chosen(copies: Sequence[Copy]) -> Choice:
    taken = max(copies, key=lambda copy: copy.worth)  # the first of equal ones
    return Choice(taken, [copy for copy in copies if copy is not taken])


def sentences(found: dict[str, Choice]) -> list[str]:
    """Return a sentence on each pair of folders, with both losses of runs that differ."""
    pairs: dict[tuple[Path, Path, str], list[tuple[Copy, Copy]]] = {}
    for choice in found.values():
        for other in choice.left:
            key = (choice.taken.folder, other.folder, _why(choice.taken, other))
            pairs.setdefault(key, []).append((choice.taken, other))
    return [
        f"{len(copies)} run{'s stand' if len(copies) > 1 else ' stands'} in both {taken} and {left}: those of {taken} count"
        f"{why}. {_numbers(copies)}"
        for (taken, left, why), copies in pairs.items()
    ]


REASONS = (  # one for each item of Copy.worth
    *("being of the present code", "being of the later science version", "since the others failed"),
    *("having training records", "having more diagnostics"),
)


def _why(taken: Copy, other: Copy) -> str:
    pairs = zip(REASONS, taken.worth, other.worth, strict=True)
    return next((f", {reason}" for reason, mine, its in pairs if mine != its), ", being named first")


def _numbers(copies: Sequence[tuple[Copy, Copy]]) -> str:
    differ = [(a, b) for a, b in copies if _outcome(a) != _outcome(b)]
    if not differ:
        return "Their losses agree."
    named = [
        f"{a.row.run_id}: {_outcome(a)} ({_numerics(a)}) counts, {_outcome(b)} ({_numerics(b)}) does not"
        for a, b in differ
    ]
    more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{len(differ)} of them ended elsewhere there: {'; '.join(named[:NAMED])}{more}."


def _outcome(copy: Copy) -> str:
    loss = copy.row.val_loss
    return copy.row.status if loss is None else f"{loss:.4f}"


def _numerics(copy: Copy) -> str:
    return numerics_text(copy.row.numerics)
