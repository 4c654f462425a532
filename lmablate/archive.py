"""Keep finished runs small enough to publish; restore them as done.

  lmablate archive save results norm-runs --sweep norm
  lmablate archive restore norm-runs results

save writes ``ARCHIVE/rows.jsonl`` (every result row; values that all rows share are in the first line), of a study
``study.json``, and of evaluated runs ``evaluations.jsonl``. Host, folders and runtime settings stay out, as do checkpoints
and loss curves. restore makes run directories of them, so that training the same sweep trains only what is missing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmablate.core import access
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import read_json, read_jsonl, write_together
from lmablate.core.paths import given_path
from lmablate.results.evaluations import ARCHIVE as EVALUATIONS
from lmablate.results.evaluations import archived_evaluations, restore_evaluations
from lmablate.results.studies import load_studies, study_path, write_study
from lmablate.runs.run_directory import RunDirectory, below, check_readable, check_writable, read_result_file
from lmablate.schema.result import parse_result

ROWS, STUDY = "rows.jsonl", "study.json"
SCHEMA_VERSION = 1
PRIVATE = ("host",)  # keys of provenance
LOCATION_KEYS = (
    "results_dir=",
    "runtime.",
    "data.paths=",
    "hydra.",
)  # overrides of paths and execution, not of the science
Row = dict[str, Any]


def save(results_dir: Path, archive: Path, sweep: str | None = None) -> int:
    """Write the finished runs of `results_dir`, or those of one sweep, to `archive`. Returns their number. Raises
    ConfigError if there are none. Failed runs are left out: they are not results."""
    check_readable(results_dir, "")
    rows = {row["run_id"]: public(row) for row in _readable(results_dir) if row["status"] != "failed"}
    studies = load_studies(results_dir)
    known = sorted({*studies, *(str(row["sweep"]) for row in rows.values() if row.get("sweep"))})
    study = studies.get(sweep) if sweep else None
    if study is not None:
        uses = {use["run_id"] for use in study["runs"]}
        rows = {key: row for key, row in rows.items() if key in uses}
    elif sweep:
        rows = {key: row for key, row in rows.items() if row.get("sweep") == sweep}
    if not rows:
        sweep_text = f" of sweep {sweep}; it has {', '.join(known) or 'no sweep'}" if sweep else ""
        lower = "".join(f"; there are runs one level down, in {one}" for one in below(results_dir))
        raise ConfigError(f"{results_dir}: no finished run{sweep_text}{lower}")
    check_writable(archive, "archive")
    common = shared(list(rows.values()))
    lines = [{"schema_version": SCHEMA_VERSION, "common": common}, *(without(row, common) for row in rows.values())]
    files = {archive / ROWS: "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)}
    if study is not None:
        files[archive / STUDY] = json.dumps(study, indent=1, allow_nan=False) + "\n"
    if evaluations := archived_evaluations(results_dir, rows):
        files[archive / EVALUATIONS] = evaluations
    write_together(files)
    return len(rows)


def _readable(results_dir: Path) -> Iterator[Row]:
    """Yield the result rows of a folder, and print unreadable ones."""
    for run, why in access.folders(results_dir):
        row, problem = (None, why) if why else read_result_file(run / "result.json")
        if row is not None:
            yield row.model_dump(exclude_unset=True)
        elif why or access.there(run / "result.json"):
            print(f"{run}: left out ({problem})", file=sys.stderr)


def load(archive: Path) -> tuple[list[Row], Row | None]:
    """Return the complete result rows of an archive, and its study. Raises ConfigError for a folder that is no archive."""
    try:
        head, *rest = read_jsonl(archive / ROWS)
        if head.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {head.get('schema_version')}, and this lmablate reads {SCHEMA_VERSION}"
            )
        study = read_json(archive / STUDY) if (archive / STUDY).exists() else None
        rows = [merged(head["common"], row) for row in rest]
        _check_names([*(str(row["run_id"]) for row in rows), *([str(study["sweep"])] if study else [])])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{archive}: not an archive of runs ({reason}): give a folder that holds {ROWS}") from None
    return rows, study


def restore(archive: Path, results_dir: Path) -> tuple[int, int]:
    """Make run directories of an archive's rows. Returns how many were made and how many existed. Existing results are
    never replaced."""
    rows, study = load(archive)
    check_writable(results_dir)
    made = 0
    for row in rows:
        directory = RunDirectory(results_dir, row["run_id"])
        if directory.is_done:
            continue
        result, problem = parse_result(row)
        if result is None:
            raise ConfigError(f"{archive / ROWS}: result of run {row['run_id']}: {problem}")
        directory.finish(result)
        made += 1
    restore_evaluations(archive, {row["run_id"] for row in rows}, results_dir)
    if study is not None and not study_path(results_dir, study["sweep"]).exists():
        write_study(results_dir, study["sweep"], study)
    return made, len(rows) - made


def public(row: Row) -> Row:
    """Return a row without the machine's name and without overrides of paths and execution."""
    provenance = {key: value for key, value in row["provenance"].items() if key not in PRIVATE}
    provenance["overrides"] = [
        one for one in provenance.get("overrides", ()) if not one.lstrip("+").startswith(LOCATION_KEYS)
    ]
    return {**row, "provenance": provenance}


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


def _check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that may lead out of the results directory, since names become folders."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
            raise ValueError(f"{name!r} is not the name of a run or sweep")


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = command_parser("archive")
    verbs = parser.add_subparsers(dest="verb", required=True)
    keep = verbs.add_parser("save", help="write the finished runs of a results folder to an archive")
    keep.add_argument("results_dir", type=given_path, metavar="RESULTS_DIR")
    keep.add_argument("archive", type=given_path, metavar="ARCHIVE")
    keep.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (default: all)")
    back = verbs.add_parser("restore", help="make run directories of archives; what is there stays")
    back.add_argument("archives", type=given_path, metavar="ARCHIVE", nargs="+")
    back.add_argument("results_dir", type=given_path, metavar="RESULTS_DIR")
    args = parser.parse_args(argv)
    if args.verb == "save":
        print(f"{args.archive}: {save(args.results_dir, args.archive, args.sweep)} runs")
    else:
        for archive in args.archives:  # read all before restoring the first
            load(archive)
        for archive in args.archives:
            made, there = restore(archive, args.results_dir)
            print(f"{archive}: {made} runs restored to {args.results_dir}, {there} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
