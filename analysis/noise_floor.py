"""How far apart do two runs land that differ in their seeds alone: in the draws of the weights, the order of the data, or both?

The runs: ``lmablate train sweeps=noise_floor``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lmablate.analysis._studies import stage
from lmablate.analysis._style import MUTED, PALETTE, PAPER, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "noise_floor"
NEAR = (("base", "layer"), ("gelu", "silu"))  # arms that are nearly the same


class Spread(NamedTuple):
    """Standard deviations in nats per token: what the weights' draws, the data's order and both together add, and what one
    run differs from another with other seeds (`total`); from a grid of `shape` (draws, orders)."""

    init: float
    data: float
    both: float
    total: float
    shape: tuple[int, int]


def spread(runs: pd.DataFrame) -> Spread | None:
    """Variance components of a full grid of seeds, two-way random effects without repeats (Searle 1971): mean squares of
    rows, columns and the rest; negative estimates count as 0. None without a grid of two by two."""
    done = runs[runs["status"] == "completed"]
    table = done.pivot_table(index="init_seed", columns="data_seed", values="val_loss", aggfunc="mean")
    table = table.dropna(axis=0)
    a, b = table.shape
    if a < 2 or b < 2:
        return None
    y = table.to_numpy(dtype=float)
    rows, columns, grand = y.mean(1), y.mean(0), y.mean()
    ms_rows = b * ((rows - grand) ** 2).sum() / (a - 1)
    ms_columns = a * ((columns - grand) ** 2).sum() / (b - 1)
    rest = y - rows[:, None] - columns[None, :] + grand
    ms_rest = (rest**2).sum() / ((a - 1) * (b - 1))
    parts = [max(0.0, float((ms_rows - ms_rest) / b)), max(0.0, float((ms_columns - ms_rest) / a)), float(ms_rest)]
    return Spread(*(math.sqrt(part) for part in parts), math.sqrt(sum(parts)), (a, b))


def near_arms(runs: pd.DataFrame) -> dict[str, float]:
    """Return the standard deviation over seeds of the difference of two near arms, in per cent of the first one's mean loss."""
    done = runs[runs["status"] == "completed"]
    table = done.pivot_table(index=["init_seed", "data_seed"], columns="arm", values="val_loss", aggfunc="mean")
    out = {}
    for a, b in NEAR:
        if {a, b} <= set(table) and len(pairs := table[[a, b]].dropna()) > 1:
            out[f"{b} against {a}"] = float(100 * (pairs[b] - pairs[a]).std() / pairs[a].mean())
    return out


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Final loss of every run of the first arm by its draw of the weights, a colour an order of the data; and what each seed adds."""
    every = stage(runs, "evaluate")
    own = every[every["status"] == "completed"]
    if "base" in set(own["arm"]):
        own = own[own["arm"] == "base"]
    if own.empty:
        return message(NOTHING.format(SWEEP))
    parts = spread(own)
    with style():
        figure = new_figure(height=4.4)
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        orders = sorted(set(own["data_seed"]))
        for i, order in enumerate(orders):
            rows = own[own["data_seed"] == order].sort_values("init_seed")
            nudge = (i - (len(orders) - 1) / 2) * 0.06
            x = rows["init_seed"].astype(float) + nudge
            left.plot(x, rows["val_loss"], "o", ms=5, mfc=PAPER, mew=1.3, color=PALETTE[i % len(PALETTE)])
        left.set(
            title="Final validation loss; a colour is one order of the data",
            xlabel="seed of the weights",
            ylabel="nats per token",
        )
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        if parts is None:
            right.set_axis_off()
            right.text(0, 0.5, "No full grid of draws and orders yet.", color=MUTED)
            note = f"{len(own)} runs"
        else:
            names = ["draws of the weights", "order of the data", "both together", "two runs' seeds"]
            values = np.array(parts[:4])
            right.barh(range(4), values, color=[PALETTE[0], PALETTE[1], PALETTE[2], MUTED], height=0.6)
            right.set_yticks(range(4), names)
            right.invert_yaxis()
            for y, value in enumerate(values):
                right.annotate(f"{value:.4f}", (value, y), xytext=(4, 0), textcoords="offset points", va="center")
            right.margins(x=0.2)
            right.set(title="Standard deviation it adds", xlabel="nats per token")
            note = f"{parts.shape[0]} draws x {parts.shape[1]} orders, variance components of a two-way layout"
        if near := near_arms(every):
            said = ", ".join(f"{names} {value:.2f} %" for names, value in near.items())
            note += f"\nstandard deviation of a paired difference of near arms: {said}"
        entitle(figure, sweep_question(SWEEP) or SWEEP, note)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.noise_floor RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
