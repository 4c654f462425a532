"""Fit scaling laws to points, or to the ladders of a results folder.

  lmablate scaling fit points.csv --form chinchilla --out law
  lmablate scaling results --out ladders

fit takes anybody's points (columns params,tokens,loss, or flops,loss) and writes law.json and a figure; lmablate scaling
fit --help says more. A results folder prints law, compute multiples, trends and forecasts of each of its ladder studies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write, file_stem
from lmablate.core.paths import given_path
from lmablate.results.load import load_runs
from lmablate.results.studies import studies_in
from lmablate.runs.run_directory import check_readable, check_writable
from lmablate.scaling import law_file
from lmablate.scaling.forms import FORMS, Form, Term, form_of
from lmablate.scaling.isoflop import isoflop
from lmablate.scaling.ladder_summary import calibration_of, lines, summaries
from lmablate.scaling.law import RESAMPLES, fit
from lmablate.scaling.points import Points, read_points

ISOFLOP = "isoflop"
ISOFLOP_COLUMNS = Form(ISOFLOP, "", (Term("params", "", ""), Term("flops", "", "")), False)

FIT = """Fit a scaling law to points.

  lmablate scaling fit points.csv --form chinchilla --out law
  lmablate scaling fit points.csv --budget 1e20      the best size for a budget
"""


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or 2 for points that carry no law."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["fit"]:
        print("\n".join(fit_points(_fit_parser().parse_args(args[1:]))))
        return 0
    print("\n".join(of_results(_parser().parse_args(args))))
    return 0


def _fit_parser() -> argparse.ArgumentParser:
    parser = command_parser("scaling fit", FIT)
    add = parser.add_argument
    add("points", type=given_path, metavar="POINTS.csv", help="a line of column names, then a line for each run")
    add("--form", default="chinchilla", choices=(*FORMS, ISOFLOP), help="of the law (default: %(default)s)")
    add("--out", type=given_path, metavar="DIR", help="where law.json and law.png go (default: nothing is written)")
    add(
        "--budget",
        type=float,
        action="append",
        default=[],
        metavar="FLOPS",
        help="say the best params and tokens for it",
    )
    add("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the bootstrap (default: %(default)s)")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("scaling")
    parser.add_argument("results_dir", type=given_path, metavar="RESULTS_DIR", help="finished runs with ladder studies")
    parser.add_argument("--out", type=given_path, metavar="DIR", help="where ladders.json, laws and figures go")
    return parser


def fit_points(args: argparse.Namespace) -> list[str]:
    """Fit the law of a command line and write it. Return the lines to print. Raises ConfigError."""
    if args.resamples < 20:
        raise ConfigError(f"--resamples {args.resamples}: an interval needs at least 20")
    if args.budget and args.form != "chinchilla":
        raise ConfigError(f"--budget needs a law of params and tokens: use --form chinchilla, not {args.form}")
    if bad := [one for one in args.budget if not 0 < one < float("inf")]:
        raise ConfigError(f"--budget {bad[0]}: must be a number of FLOPs above 0")
    if args.out is not None:
        check_writable(args.out, "--out")
    if args.form == ISOFLOP:
        points = read_points(args.points, ISOFLOP_COLUMNS)
        record = law_file.isoflop_content(isoflop(points, resamples=args.resamples))
        lines = law_file.isoflop_lines(record)
    else:
        points = read_points(args.points, form_of(args.form))
        record = law_file.content(fit(points, FORMS[args.form], resamples=args.resamples), tuple(args.budget))
        lines = law_file.lines(record)
    return [*lines, *_written(args.out, record, points)]


def _written(out: Path | None, record: dict[str, object], points: Points) -> list[str]:
    if out is None:
        return []
    _, scaling_law, save = _drawing()
    atomic_write(out / "law.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    save(scaling_law.figure(record, points.columns, points.loss), out / "law")
    return ["", f"wrote {out / 'law.json'} and {out / 'law.png'}"]


def _drawing() -> tuple[ModuleType, ModuleType, Callable[..., list[Path]]]:
    """Return what draws ladders and laws, and what saves; matplotlib is loaded only for that."""
    from lmablate.analysis import _style, ladders, scaling_law

    return ladders, scaling_law, _style.save


def of_results(args: argparse.Namespace) -> list[str]:
    """Return what the ladders of a results directory show, and write it. Raises ConfigError where there is none."""
    check_readable(args.results_dir, "")
    if args.out is not None:
        check_writable(args.out, "--out")
    studies = studies_in([args.results_dir])
    records = summaries(load_runs(args.results_dir), studies)
    if not records:
        names = ", ".join(study["sweep"] for study in studies) or "no study at all"
        raise ConfigError(
            f"{args.results_dir}: no ladder among its studies ({names}); train one, e.g. lmablate train sweeps=activation "
            "ladder=laptop scale=laptop"
        )
    out = [line for record in records for line in (*lines(record), "")]
    calibrated = calibration_of(records)
    return [*out, calibrated["words"], *_ladders_written(args.out, records, calibrated)]


def _ladders_written(out: Path | None, records: list[dict[str, Any]], calibrated: dict[str, Any]) -> list[str]:
    if out is None:
        return []
    ladders, _, save = _drawing()
    content = {"schema_version": 1, "ladders": records, "calibration": calibrated}
    atomic_write(out / "ladders.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    figures = [str(save(ladders.figure(record), out / file_stem(record["study"]))[0]) for record in records]
    return ["", f"wrote {', '.join([str(out / 'ladders.json'), *figures])}"]


if __name__ == "__main__":
    sys.exit(main())
