"""Keep finished runs small enough to publish; restore them as done.

  lmablate archive save results norm-runs --sweep norm
  lmablate archive restore norm-runs results
  lmablate archive restore docs/results/runs.parquet results

save writes ``ARCHIVE/rows.jsonl`` (every result row; values that all rows share are in the first line), of a study
``study.json``, and of evaluated runs ``evaluations.jsonl``. Host, folders and runtime settings stay out, as do checkpoints
and loss curves. restore makes run directories of them, so that training the same sweep trains only what is missing.
A dataset of runs (Parquet) is restored in the same way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmablate.core import access
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import write_together
from lmablate.core.paths import given_path
from lmablate.results.archives import ROWS, SCHEMA_VERSION, STUDY, Archive, free_name, read_folder, shared, without
from lmablate.results.dataset_reading import read_dataset
from lmablate.results.evaluations import ARCHIVE as EVALUATIONS
from lmablate.results.evaluations import archived_evaluations, restore_evaluations
from lmablate.results.studies import load_studies, write_study
from lmablate.runs.run_directory import RunDirectory, below, check_readable, check_writable, read_result_file
from lmablate.schema.result import parse_result

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


def load(archive: Path) -> Archive:
    """Return what an archive holds: a folder, or a dataset of runs (results/dataset.py). Raises ConfigError for anything else."""
    if archive.suffix == ".parquet" and not archive.is_dir():
        return read_dataset(archive)
    return read_folder(archive)


def restore(archive: Path, results_dir: Path) -> tuple[int, int]:
    """Make run directories of an archive's rows. Returns how many were made and how many existed. Existing results are
    never replaced."""
    return unpack(load(archive), archive, results_dir)


def unpack(content: Archive, archive: Path, results_dir: Path) -> tuple[int, int]:
    """Make run directories of what was read from `archive`, as restore does."""
    check_writable(results_dir)
    made = 0
    for row in content.rows:
        directory = RunDirectory(results_dir, row["run_id"])
        if directory.is_done:
            continue
        result, problem = parse_result(row)
        if result is None:
            raise ConfigError(f"{archive}: result of run {row['run_id']}: {problem}")
        directory.finish(result)
        made += 1
    restore_evaluations(content.evaluations, {row["run_id"] for row in content.rows}, results_dir, archive)
    there = list(load_studies(results_dir).values())
    for study in content.studies:
        if name := free_name(study, content.name, there):
            there.append({**study, "sweep": name})
            write_study(results_dir, name, there[-1])
    return made, len(content.rows) - made


def public(row: Row) -> Row:
    """Return a row without the machine's name and without overrides of paths and execution."""
    provenance = {key: value for key, value in row["provenance"].items() if key not in PRIVATE}
    provenance["overrides"] = [
        one for one in provenance.get("overrides", ()) if not one.lstrip("+").startswith(LOCATION_KEYS)
    ]
    return {**row, "provenance": provenance}


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
        contents = {archive: load(archive) for archive in args.archives}  # all of them before the first is restored
        for archive, content in contents.items():
            made, there = unpack(content, archive, args.results_dir)
            print(f"{archive}: {made} runs restored to {args.results_dir}, {there} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
