"""What does depth bring at equal parameters, and what does it cost in time?

The runs: ``lmablate train sweeps=depth_limit``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, arms_in_order, increases, stage
from lmablate.analysis._style import MUTED, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, note
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP = "depth_limit"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Loss over the best against the time of a training step, a mark a shape; to the left and below is better."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    with style():
        figure = new_figure(height=4.6)
        _draw(figure.subplots(), own)
        lost = [arm for arm, rise in increases(own).items() if rise.mean is None]
        entitle(figure, sweep_question(SWEEP) or SWEEP, note(own, SWEEP) + lost_words(lost))
    return figure


def _draw(axes: Axes, runs: pd.DataFrame) -> None:
    arms, styles, rises = arm_of(runs), arm_styles(arms_in_order(runs)), increases(runs)
    for arm, rise in rises.items():
        rows, look = runs[arms == arm], styles[arm]
        times = 1e6 / rows.loc[rows["status"] == "completed", "tokens_per_second"].astype(float)
        if rise.mean is None or times.empty:
            continue
        shape = rows.iloc[0]
        axes.plot([times.mean()], [rise.mean], look.marker, ms=8, color=look.color, zorder=4)
        if rise.low is not None and rise.high is not None:
            axes.plot([times.mean()] * 2, [rise.low, rise.high], color=look.color, lw=2.4, alpha=0.45, zorder=3)
        if bounds := interval(list(times)):
            axes.plot(bounds, [rise.mean] * 2, color=look.color, lw=2.4, alpha=0.45, zorder=3)
        words = f"{shape['model.n_layers']:.0f} layers of {shape['model.d_model']:.0f}"
        axes.annotate(words, (times.mean(), rise.mean), xytext=(9, 5), textcoords="offset points", color=look.color)
    axes.axhline(0, color=MUTED, lw=1, zorder=1)
    axes.margins(x=0.15, y=0.12)
    axes.set(
        xlabel="training time, microseconds per token on the machine of the runs",
        title="Final validation loss over the best, per cent",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.depth_limit RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
