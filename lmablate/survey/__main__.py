"""Judge what the lecture says of published systems, by counting.

  lmablate survey                 the verdicts
  lmablate survey --out survey    tables, figures and claims.json too

Needs no runs. Writes ``tables/{systems,ratios,by_year,claims}.csv`` and ``.md``, ``figures/{choices,ratios,verdicts}.png``
and ``.svg``, and ``claims.json``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lmablate.core.commands import command_parser
from lmablate.core.console import markdown_table
from lmablate.core.errors import exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.runs.run_directory import check_writable
from lmablate.survey.judge import judged
from lmablate.survey.table import CHOICES, COLUMNS, Row, by_year, systems, value_text

RATIO_COLUMNS = (
    *("system", "year", "gated", "ff_ratio", "n_heads", "head_dim", "heads_width", "aspect_ratio", "n_layers", "vocab_size"),
    *("dropout", "weight_decay", "training_source"),
)  # fmt: skip
SHOWN = (
    *("system", "year", "kind", "norm", "norm_position", "position", "activation", "heads", "block_layout", "linear_bias"),
    *("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "params", "built", "source"),
)  # fmt: skip
CLAIM_COLUMNS = (
    *(
        "id",
        "statement",
        "verdict",
        "reason",
        "exceptions",
        "not published",
        "all sizes",
        "the lecture's 25",
        "since 2025",
        "counts since 2025",
        "exceptions since 2025",
        "said in",
    ),
)


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Judge the survey's claims, and write the survey if ``--out`` is given. Return the exit code."""
    parser = command_parser("survey")
    parser.add_argument("--out", type=given_path, metavar="DIR", help="write tables, figures and claims.json there")
    out = parser.parse_args(argv).out
    table = systems()
    claims = judged(table)
    if out is not None:
        write(table, claims, out)
    print("\n".join(_lines(table, claims)))
    if out is not None:
        print(f"wrote {out}/tables, {out}/figures and {out}/claims.json")
    return 0


def write(table: Sequence[Row], verdicts: Sequence[Row], out: Path) -> None:
    """Write tables, figures and claims.json into `out`. Raises ConfigError if it cannot be written."""
    from lmablate.analysis.survey import draw

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for folder in (out, out / "tables", out / "figures"):
        check_writable(folder, "--out")
    claims = [claim_cells(claim) for claim in verdicts]
    sheets = {
        "systems": (COLUMNS, SHOWN, table),
        "ratios": (RATIO_COLUMNS, RATIO_COLUMNS[:-1], table),
        "by_year": (YEAR_COLUMNS, YEAR_COLUMNS, years(table)),
        "claims": (CLAIM_COLUMNS, CLAIM_COLUMNS, claims),
    }
    for name, (columns, shown, rows) in sheets.items():
        atomic_write(out / "tables" / f"{name}.csv", as_csv(rows, columns))
        atomic_write(out / "tables" / f"{name}.md", f"# {TITLES[name]}\n\n{as_markdown(rows, shown)}")
    atomic_write(out / "claims.json", json.dumps(verdicts, indent=1, allow_nan=False) + "\n")
    draw(table, verdicts, out / "figures")


TITLES = {
    "systems": "Published systems",
    "ratios": "Ratios of published systems",
    "by_year": "Choices by year",
    "claims": "Statements of the lecture",
}
YEAR_COLUMNS = ("choice", "option", "year", "releases", "of", "systems", "of all sizes")


def years(table: Sequence[Row]) -> list[Row]:
    """Return one row per choice, option and year: the releases that chose it, of those that are known, and the systems."""
    out = []
    for column in CHOICES:
        for release, system in zip(by_year(table, column), by_year(table, column, releases=False), strict=True):
            for option in [key for key in release if key not in ("year", "n", "unknown")]:
                row = {"choice": column, "option": option, "year": release["year"], "releases": release[option]}
                row |= {"of": release["n"] - release["unknown"], "systems": system[option]}
                out.append(row | {"of all sizes": system["n"] - system["unknown"]})
    return out


def claim_cells(claim: Row) -> Row:
    """Return a judged claim as cells of a table."""
    later = claim["later"]
    lecture = f"{claim['lecture_table'][0]} of {claim['lecture_table'][1]}" if claim["lecture_table"][1] else "-"
    return {
        **{key: claim[key] for key in ("id", "statement", "verdict", "reason")},
        "exceptions": ", ".join(claim["exceptions"]) or "-",
        "not published": claim["unknown"],
        "all sizes": f"{claim['systems'][0]} of {claim['systems'][1]}",
        "the lecture's 25": lecture,
        "since 2025": claim["became"],
        "counts since 2025": later["reason"] if later["n"] else "-",
        "exceptions since 2025": ", ".join(later["exceptions"]) or "-",
        "said in": claim["said_in"],
    }


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return rows as CSV, with empty cells for unknown values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row[column] is None else value_text(row[column]) for column in columns] for row in rows])
    return text.getvalue()


def as_markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return rows as a Markdown table."""
    cells = ([_cell(column, row[column]) for column in columns] for row in rows)
    return markdown_table([column.replace("_", " ") for column in columns], cells) + "\n"


def _cell(column: str, value: object) -> str:
    if column == "built":
        return f"`preset={value}`"
    if value is None or value == "":
        return "-"
    if isinstance(value, int) and not isinstance(value, bool) and column != "year":
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else value_text(value)


def _lines(table: Sequence[Row], claims: Sequence[Row]) -> list[str]:
    releases = sum(row["stands_for_release"] for row in table)
    lines = [f"{len(table)} systems of {releases} releases, {table[0]['year']} to {table[-1]['year']}", ""]
    for claim in claims:
        lines.append(f"{claim['verdict']:<13} {claim['statement']} ({claim['reason']}{_not_so(claim)})")
        if (later := claim["later"])["n"]:
            lines.append(f"{'':<13} since 2025 {claim['became']}: {later['reason']}{_not_so(later)}")
    return [*lines, ""]


def _not_so(judged: Row) -> str:
    return f"; not so: {', '.join(judged['exceptions'])}" if 0 < len(judged["exceptions"]) <= 8 else ""


if __name__ == "__main__":
    sys.exit(main())
