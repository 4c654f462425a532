"""Do experts pay at equal active FLOPs, and does it take balancing?

The runs: ``lmablate train sweeps=moe``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, arms_in_order, effects, stage
from lmablate.analysis._style import (
    INK,
    MUTED,
    PAPER,
    Arm,
    entitle,
    message,
    new_figure,
    run,
    side_column,
    signed,
    style,
)
from lmablate.analysis._style import arm_styles as styles_of
from lmablate.analysis.study_figures import NOTHING, arm_name
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP, BASELINE = "moe", "dense"
EVEN = 0.9  # of log E: below it the load counts as skewed


def entropies(runs: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The entropy of expert load over log E: a row an arm and step, with the mean over seeds and layers, and the lowest of any
    layer as `least`."""
    columns = [c for c in history.columns if c.startswith("diag/") and c.endswith("/load_entropy")]
    own = (
        history[history["run_id"].isin(runs["run_id"])].dropna(subset=columns, how="all")
        if columns
        else history.iloc[:0]
    )
    arms = dict(zip(runs["run_id"], arm_of(runs), strict=True))
    rows = pd.DataFrame({"arm": own["run_id"].map(arms), "step": own["step"]})
    rows["mean"], rows["least"] = own[columns].mean(axis=1), own[columns].min(axis=1)
    return rows.groupby(["arm", "step"], as_index=False, sort=False).agg({"mean": "mean", "least": "min"})


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Left: the change of the final loss against the dense network over the same seeds, with 95 % intervals. Right: how even the
    load of the experts is in the course of training, the mean over layers and the most uneven one."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    styles = styles_of(arms_in_order(own, BASELINE))
    load = entropies(own, history) if history is not None and len(history) else pd.DataFrame()
    with style():
        figure = new_figure(height=2.4 + 0.34 * max(4, len(styles)))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _draw_losses(left, own, styles)
        _draw_load(right, load, styles)
        n = own.groupby(arm_of(own))["init_seed"].nunique().min()
        note = f"{n} seeds, the same in all arms  ·  left: mean and 95 % interval  ·  right: mean over layers, shaded to the least even"
        entitle(figure, sweep_question(SWEEP) or SWEEP, note)
    return figure


def _draw_losses(axes: Axes, own: pd.DataFrame, styles: dict[str, Arm]) -> None:
    found = effects(own, BASELINE)
    names = [name for name in styles if name != BASELINE]
    axes.axvline(0, color=MUTED, lw=1, zorder=1)
    rows = []
    for y, name in enumerate(names):
        effect, color = found.get(name), styles[name].color
        if effect is None or effect.mean is None:
            rows.append((y, "no pair", MUTED))
            continue
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [y, y], color=color, lw=1.8, zorder=3)
        axes.plot([effect.mean], [y], "o", ms=7, mfc=PAPER, mec=color, mew=1.6, zorder=4)
        rows.append((y, f"{signed(effect.mean, 2)} %", INK))
    shown = [arm_name(name, found[name]) if name in found else name for name in names]
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("change of the final loss against dense, per cent")
    side_column(axes, "mean", rows)


def _draw_load(axes: Axes, load: pd.DataFrame, styles: dict[str, Arm]) -> None:
    axes.axhline(EVEN, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    for name, mine in load.groupby("arm", sort=False) if len(load) else ():
        color = styles[str(name)].color
        axes.fill_between(mine["step"], mine["least"], mine["mean"], color=color, alpha=0.12, lw=0)
        axes.plot(mine["step"], mine["mean"], color=color, lw=1.6, label=str(name))
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("step")
    axes.set_ylabel("entropy of expert load / log E")
    if len(load):
        axes.legend(loc="lower left", fontsize=8)
    else:
        axes.text(0.5, 0.5, "no history of these runs", transform=axes.transAxes, ha="center", color=MUTED)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.moe RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load
    from lmablate.results import load_history

    def draw(results_dir: str) -> Figure:
        runs = load(results_dir, SWEEP)
        return figure(runs, load_history(results_dir, run_ids=list(runs["run_id"])))

    return run(draw, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
