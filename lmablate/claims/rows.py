"""Finished runs as rows for claims, with values from evaluation files and from other runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmablate.claims.predicates import Row
from lmablate.results.arms import axis_columns, config_columns, is_missing
from lmablate.results.evaluations import load_evaluations
from lmablate.schema.evaluation_windows import VALIDATION

if TYPE_CHECKING:
    import pandas as pd


_OF_EACH_TEXT = ("val_loss", "val_bpb", "lr_sensitivity", "diverged")  # other metrics are of a mixture as a whole


class Table(NamedTuple):
    """Finished runs (load_runs) as rows, with the columns that tell their science apart."""

    rows: list[Row]
    columns: list[str]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Table:
        """Return the table of a frame of runs."""
        columns = [*axis_columns(runs), *config_columns(runs), "science_version"]
        rows, longer = runs.to_dict("records"), _through_longer_windows(runs)
        for row in rows:
            row |= longer.get(row["run_id"], {})
        return cls(_with_shares(rows), [column for column in columns if column in runs])

    def of_sweep(self, sweep: str | None) -> Table:
        """Return the rows of one stored sweep (None: of no sweep), as in a report on it alone."""
        rows = [row for row in self.rows if (None if is_missing(row["sweep"]) else row["sweep"]) == sweep]
        return Table(_with_shares(rows), self.columns)

    def of_text(self, text: str, metric: str) -> Table:
        """Return the rows on one text: of ``data=<text>``, and of mixtures that hold it, with its own loss."""
        rows = [row for row in self.rows if row.get("data") == text]
        if metric in _OF_EACH_TEXT:
            rows += [_on(text, row) for row in self.rows if not is_missing(row.get(f"data.texts.{text}.val_tokens"))]
        return Table(rows, self.columns)

    def each_run_once(self) -> Table:
        """Return the rows without duplicates of runs that several studies share."""
        rows: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            rows.setdefault((row["run_id"], str(row.get("stage"))), row)
        return Table(list(rows.values()), self.columns)


def _on(text: str, row: Row) -> Row:
    """Return the row of a mixture with the validation loss of one of its texts."""
    sizes = {f"data.{size}": row[f"data.texts.{text}.{size}"] for size in ("val_tokens", "val_bytes")}
    return row | sizes | {metric: row.get(f"{metric}_{text}") for metric in ("val_loss", "val_bpb")}


def _with_shares(rows: Sequence[Row]) -> list[Row]:
    """Return copies of `rows`. Branches of a trunk get ``trunk_share``, their steps over the longest branch's."""
    longest = _longest(rows)
    shares = [
        {"trunk_share": r["trainer.steps"] / longest[r["trunk"]]} if r.get("trunk") in longest else {} for r in rows
    ]
    return [row | share for row, share in zip(rows, shares, strict=True)]


def _longest(rows: Sequence[Row]) -> dict[str, int]:
    """Return the steps of the longest run of every trunk (lmablate/runs/wsd_branches.py)."""
    out: dict[str, int] = {}
    for row in rows:
        if not is_missing(row.get("trunk")):
            out[row["trunk"]] = max(out.get(row["trunk"], 0), row["trainer.steps"])
    return out


def _through_longer_windows(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return ``val_loss_4x`` and the like by run id, in nats per token.

    They come from evaluations of the validation text in non-overlapping windows of a whole multiple of the training length,
    with the model as trained."""
    folders = runs.attrs.get("folders", [])
    frame = load_evaluations(folders) if folders else None
    out: dict[str, dict[str, float]] = {}
    if frame is None or frame.empty:
        return out
    plain = frame[(frame["text"] == VALIDATION) & (frame["changes"] == "") & ~frame["sliding"].astype(bool)]
    for row in plain.to_dict("records"):
        if row["times"] > 1 and float(row["times"]).is_integer():
            out.setdefault(row["run_id"], {})[f"val_loss_{row['times']:.0f}x"] = row["nats_per_token"]
    return out
