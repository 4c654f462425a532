"""Read archives of finished runs (``lmablate archive``): every result row, with the studies and evaluations that belong to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError
from lmablate.core.files import file_stem, read_json, read_jsonl
from lmablate.results.evaluations import ARCHIVE as EVALUATIONS
from lmablate.results.studies import has_runs
from lmablate.schema.sweeps import AT, stored_sweep

ROWS, STUDY = "rows.jsonl", "study.json"
SCHEMA_VERSION = 1
Row = dict[str, Any]


class Archive(NamedTuple):
    """Finished runs without their folders. `name`: of the archive; `rows`: contents of result.json; `studies`: contents of
    studies/<sweep>.json; `evaluations`: contents of evaluation files."""

    name: str
    rows: list[Row]
    studies: list[Row]
    evaluations: list[Row]


def read_folder(folder: Path) -> Archive:
    """Return the archive that a folder holds. Raises ConfigError for a folder that is none."""
    try:
        head, *rest = read_jsonl(folder / ROWS)
        if head.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {head.get('schema_version')}, and this lmablate reads {SCHEMA_VERSION}"
            )
        rows = [merged(head["common"], row) for row in rest]
        studies = [read_json(folder / STUDY)] if (folder / STUDY).exists() else []
        check_names(rows, studies)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder}: not an archive of runs ({reason}): give a folder that holds {ROWS}") from None
    return Archive(folder.resolve().name, rows, studies, _evaluations(folder / EVALUATIONS))


def _evaluations(path: Path) -> list[Row]:
    try:
        return read_jsonl(path) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}): take it out, or mend it") from None


def check_names(rows: Iterable[Row], studies: Iterable[Row]) -> None:
    """Raise ValueError for a name that may lead out of the results directory, since names become folders, and for a study without runs."""
    for row in rows:
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", str(row["run_id"])):
            raise ValueError(f"{row['run_id']!r} is not the name of a run")
    for study in studies:
        name = str(study["sweep"])
        if not re.fullmatch(rf"[\w\-]+(/[\w\-]+)*({AT}[\w\-]+)?", name):
            raise ValueError(f"{name!r} is not the name of a sweep")
        if not has_runs(study):
            raise ValueError(f"the study {name} does not list its runs")


def free_name(study: Row, archive: str, others: Iterable[Row]) -> str | None:
    """Return the name of a study among `others`: its own, or with the name of its `archive` where another study of that stored sweep has it
    (sweep @ archive). None where one of them lists the same runs, or is the same study with more or fewer."""
    own, names = _runs(study), {str(other["sweep"]) for other in others}
    for other in others:
        theirs = _runs(other)
        alike = stored_sweep(str(other["sweep"])) == stored_sweep(str(study["sweep"]))
        alike &= bool(other.get("ladder")) == bool(study.get("ladder"))  # a ladder may use every run of one size
        if alike and (own <= theirs or theirs <= own):
            return None
    named = f"{stored_sweep(str(study['sweep']))}{AT}{file_stem(archive)}"
    return next((name for name in (str(study["sweep"]), named) if name not in names), None)


def _runs(study: Row) -> set[str]:
    return {use["run_id"] for use in study["runs"]}


def shared(rows: Sequence[Row]) -> Row:
    """Return the part of nested rows that is equal in all of them."""
    first, *others = rows
    out: Row = {}
    for key, value in first.items():
        if any(key not in row for row in others):
            continue
        if isinstance(value, dict) and all(isinstance(row[key], dict) for row in others):
            if value and (inner := shared([row[key] for row in rows])):
                out[key] = inner
        elif all(row[key] == value and type(row[key]) is type(value) for row in others):
            out[key] = value
    return out


def without(row: Row, common: Row) -> Row:
    """Return the part of `row` that is not in `common`."""
    out: Row = {}
    for key, value in row.items():
        if isinstance(value, dict) and isinstance(common.get(key), dict):
            if rest := without(value, common[key]):
                out[key] = rest
        elif key not in common:
            out[key] = value
    return out


def merged(common: Row, row: Row) -> Row:
    """Return the row from which ``without`` removed `common`."""
    out: Row = json.loads(json.dumps(common))
    for key, value in row.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out
