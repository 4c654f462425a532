"""Differences between arms, seed by seed, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lmablate.analysis._style import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    entitle,
    folded_names,
    message,
    new_figure,
    rows_height,
    side_column,
    signed,
    style,
)
from lmablate.results.arms import arm_label, show

MOST = 36  # rows that can be read on a page


def differences(comparisons: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """One row for each comparison of stats.comparisons: the difference of every paired seed as a point, their mean as a
    bar, and the 95 % interval as a line, in nats per token. An arrow says that an interval goes on beyond the axis."""
    rows = [row for row in comparisons if row["n_pairs"]][:MOST]
    if not rows:
        return message("No two arms share a seed, so there is no paired difference to draw.")
    # Two seeds give intervals of many times the difference; the points must stay readable beside them.
    reach = 1.15 * max(max(abs(value) for value in row["differences"]) for row in rows) or 1e-3
    ends = [abs(end) for row in rows if row["interval_95"] for end in row["interval_95"]]
    limit = min(max([reach, *(1.1 * end for end in ends)]), 3 * reach)
    with style():
        names = folded_names(map(name, rows))
        figure = new_figure(height=1.5 + rows_height(names))
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        for y, row in enumerate(rows):
            _draw_row(axes, y, row, limit)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-1.03 * limit, 1.03 * limit)  # room for the arrows
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set(
            title="Difference in final validation loss, same seed",
            xlabel="nats per token (below 0: the first is better)",
        )
        side_column(axes, "mean", [(y, signed(row["mean_difference"]), INK) for y, row in enumerate(rows)])
        entitle(figure, title, _note(len(rows), len(comparisons)))
    return figure


def name(row: Mapping[str, Any]) -> str:
    """A comparison in words: ``layer − rms, at swiglu``."""
    prefix = f"{row['axis'].rpartition('.')[2]} " if "." in row["axis"] else ""
    held = arm_label(row["where"], list(row["where"])) if row["where"] else ""
    return f"{prefix}{show(row['b'])} − {show(row['a'])}" + (f", at {held}" if held else "")


def _note(drawn: int, total: int) -> str:
    words = "point: one seed  ·  bar: mean  ·  line: 95 % interval of the mean (Student t)"
    return words + (f"  ·  {drawn} of {total} comparisons drawn, the others are in the table" if drawn < total else "")


def _draw_row(axes: Any, y: int, row: Mapping[str, Any], limit: float) -> None:
    color, values = PALETTE[0], row["differences"]
    if row["interval_95"]:
        low, high = row["interval_95"]
        axes.plot([max(low, -limit), min(high, limit)], [y, y], color=color, lw=1.6, alpha=0.55, zorder=2)
        for end, mark in ((low, "<"), (high, ">")):
            if abs(end) > limit:
                edge = limit if mark == ">" else -limit
                axes.plot([edge], [y], marker=mark, ms=6, color=color, clip_on=False, zorder=5)
    axes.plot([row["mean_difference"]], [y], marker="|", ms=15, mew=2.6, color=color, zorder=3)
    axes.plot(values, [y] * len(values), "o", ms=5.5, mfc=PAPER, mec=color, mew=1.2, zorder=4)
