"""Which trick widens the range of learning rates that train, and what does it cost at the best one?

The runs: ``lmablate train sweeps=stability``.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes

from lmablate.analysis._studies import arm_of, arms_in_order, stage
from lmablate.analysis._style import MUTED, PAPER, Arm, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, note, plain_log
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval
from lmablate.stats.curves import lr_sensitivity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

SWEEP = "stability"
BASELINE = "none"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Left: final loss by learning rate, the mean over seeds, a diverged run at the loss before training. Right: LR sensitivity of
    each arm over the rates that all have (Wortsman et al. 2023), the mean over seeds with its 95 % interval."""
    grid = stage(runs, "tune")
    if grid.empty:
        return message(NOTHING.format(SWEEP))
    styles = arm_styles(arms_in_order(grid, BASELINE))
    with style():
        figure = new_figure(height=4.6)
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        _draw_curves(left, grid, styles)
        _draw_sensitivity(right, sensitivities(grid), styles)
        done = set(arm_of(grid[grid["status"] == "completed"]))
        lost = lost_words([arm for arm in styles if arm not in done])
        crosses = "\ncrosses: a run of this rate diverged" if (grid["status"] == "diverged").any() else ""
        words = f"{note(grid, SWEEP)}{crosses}{lost}"
        entitle(figure, sweep_question(SWEEP) or SWEEP, words)
    return figure


def sensitivities(grid: pd.DataFrame) -> dict[str, list[float]]:
    """Of each arm, one value a seed, over the learning rates that all arms have; seeds that lack one of them are left out."""
    arms = arm_of(grid)
    common = set.intersection(*(set(grid.loc[arms == arm, "optim.lr"]) for arm in set(arms)))
    out: dict[str, list[float]] = {}
    for arm in arms_in_order(grid, BASELINE):
        rows = grid[(arms == arm) & grid["optim.lr"].isin(common)]
        out[arm] = []
        for _, own in rows.groupby("init_seed"):
            if set(own["optim.lr"]) == common:
                losses = {row["optim.lr"]: _finite(row["val_loss"]) for row in own.to_dict("records")}
                out[arm].append(lr_sensitivity(losses, float(own["init_val_loss"].iloc[0])))
    return out


def _finite(loss: float | None) -> float | None:
    return None if loss is None or not math.isfinite(loss) else float(loss)


def _draw_curves(axes: Axes, grid: pd.DataFrame, styles: Mapping[str, Arm]) -> None:
    arms = arm_of(grid)
    worth = grid["val_loss"].astype(float).where(grid["status"] == "completed")
    worth = worth.fillna(grid["init_val_loss"]).clip(upper=grid["init_val_loss"])
    for arm, look in sorted(styles.items(), key=lambda item: item[0] != BASELINE):
        rows = grid[arms == arm].assign(worth=worth)
        mean = rows.groupby("optim.lr")["worth"].mean()
        axes.plot(mean.index, mean, linestyle=look.line, marker=look.marker, ms=5, mfc=PAPER, mew=1.2, lw=1.5,
                  color=look.color, label=arm)  # fmt: skip
        for lr in sorted(set(rows.loc[rows["status"] == "diverged", "optim.lr"])):
            axes.plot([lr], [0.97], "X", ms=7, color=look.color, transform=axes.get_xaxis_transform(), clip_on=False)
    plain_log(axes, sorted(set(grid["optim.lr"])))
    axes.set(xlabel="peak learning rate", title="Final validation loss, nats per token")
    axes.legend(loc="upper center")  # a valley, so its middle is free


def _draw_sensitivity(axes: Axes, found: Mapping[str, list[float]], styles: Mapping[str, Arm]) -> None:
    for y, (arm, values) in enumerate(found.items()):
        look = styles[arm]
        if not values:
            continue
        axes.plot(values, [y + 0.18] * len(values), "|", ms=7, color=MUTED)
        axes.plot([sum(values) / len(values)], [y], look.marker, ms=7, color=look.color, zorder=4)
        if bounds := interval(values):
            axes.plot(bounds, [y, y], color=look.color, lw=2.4, alpha=0.45, zorder=3)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(title="LR sensitivity, nats (lower: wider range)", xlabel="mean over the grid of loss minus the best loss")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.stability RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
