"""What the pipeline does on made-up studies whose truth is known (``lmablate power --simulate DIR``)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lmablate.analysis._style import INK, MUTED, PALETTE, PAPER, entitle, new_figure, style


def figure(rates: pd.DataFrame) -> Figure:
    """Every rate with its exact 95 % interval and what it should be: false alarms left, findings right; one name, one block."""
    rates = rates.iloc[pd.factorize(rates["what"])[0].argsort(kind="stable")]
    alarm = rates["what"].str.contains("claimed|refuted|false positives|called equal|called no worse")
    halves = (
        (rates[alarm], "A difference or an equality that is not there", 0.05),
        (rates[~alarm], "What is there, found", 0.9),
    )
    with style():
        drawn = new_figure(width=13.0, height=1.6 + 0.27 * max(len(rows) for rows, _, _ in halves))
        for axes, (rows, title, line) in zip(drawn.subplots(1, 2), halves, strict=True):
            _panel(axes, rows, title, line)
        n = f"{rates['n'].min():,} to {rates['n'].max():,}" if rates["n"].nunique() > 1 else f"{rates['n'].min():,}"
        note = (
            f"{n} made-up studies a row, from results frames to verdicts  ·  line: exact 95 % interval of the rate  ·  "
            "bar: what theory gives or the rule allows"
        )
        entitle(drawn, "The whole pipeline on studies whose truth is known", note)
    return drawn


def _panel(axes: Any, rows: pd.DataFrame, title: str, line: float) -> None:
    axes.axvline(line, color=MUTED, lw=1, ls=(0, (4, 1.6)), zorder=1)
    for y, row in enumerate(rows.to_dict("records")):
        known = row["expected"] == row["expected"]
        color = PALETTE[0] if known or line > 0.5 else PALETTE[1]
        axes.plot([row["low"], row["high"]], [y, y], color=color, lw=1.8, zorder=2)
        axes.plot([row["rate"]], [y], "o", ms=5, mfc=PAPER, mec=color, mew=1.4, zorder=3)
        if known:
            axes.plot([row["expected"]], [y], "|", ms=12, mew=1.8, color=INK, zorder=4)
    whats = list(rows["what"])
    labels = [
        setting if i and whats[i] == whats[i - 1] else f"{what}, {setting}"
        for i, (what, setting) in enumerate(zip(whats, rows["setting"], strict=True))
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0, right=1.02 if line > 0.5 else None)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="rate")
