"""Runs that stand in several results folders: each is one run, so one of its rows is taken, and it is said which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmablate.core import access
from lmablate.results.folders import numerics_words
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import is_stale
from lmablate.schema.result import RunResult

NAMED = 6  # runs that are named one by one


class Copy(NamedTuple):
    """One folder's row of a run."""

    folder: Path
    row: RunResult

    @property
    def worth(self) -> tuple[bool, int, bool, bool, int]:
        """Of two copies the larger is taken, of equals the first. A loss, or that a run diverged, does not count: that would
        choose by the outcome."""
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
    """The runs that have a readable result in more than one of `folders`, by run id."""
    return {run_id: _chosen(copies) for run_id, copies in _copies(folders).items() if len(copies) > 1}


def counted(folders: Sequence[Path]) -> dict[str, Path]:
    """Of each run that lies in several of `folders` and is done in one, the folder whose copy counts."""
    return {run_id: _chosen(copies).taken.folder for run_id, copies in _copies(folders).items()}


def _copies(folders: Sequence[Path]) -> dict[str, list[Copy]]:
    """The readable results of each run that lies in more than one folder, done there or not."""
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
    taken = max(copies, key=lambda copy: copy.worth)  # of equals the first
    return Choice(taken, [copy for copy in copies if copy is not taken])


def sentences(found: dict[str, Choice]) -> list[str]:
    """What to say of `found`: one sentence for each two folders, with both numbers of runs that differ."""
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


REASONS = (  # in the order of Copy.worth
    *("being of the present code", "being of the later science version", "since the others failed"),
    *("having training records", "having more diagnostics"),
)


def _why(taken: Copy, other: Copy) -> str:
    pairs = zip(REASONS, taken.worth, other.worth, strict=True)
    return next((f", {words}" for words, mine, its in pairs if mine != its), ", being named first")


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
    return numerics_words(copy.row.numerics)
