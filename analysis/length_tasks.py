"""Which positions carry over to longer examples of copying, reversing and sorting?

The runs: ``lmablate train sweeps=length_tasks``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, stage
from lmablate.analysis._style import MUTED, PAPER, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, note
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP = "length_tasks"
PREFIX = "val_accuracy_by_length."


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Share of right answers by the length of the example, a panel a task and a line a scheme of positions."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    arms = arm_of(own)
    named = arms.str.partition(", data ")
    own = own.assign(scheme=named[0], task=named[2])
    styles = arm_styles(dict.fromkeys(own["scheme"]))
    tasks = list(dict.fromkeys(own["task"]))
    with style():
        figure = new_figure(height=4.4)
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for scheme, rows in own[own["task"] == task].groupby("scheme", sort=False):
                look = styles[str(scheme)]
                _draw(axes, rows, {"color": look.color, "marker": look.marker, "label": scheme})
            axes.set(title=task, xlabel="items of an example", ylim=(0, 1.03))
        panels[0].set(ylabel="share of right answers")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=6, frameon=False)
        lost = [arm for arm in dict.fromkeys(arms) if (own.loc[arms == arm, "status"] != "completed").all()]
        words = "  ·  dotted: the longest example of training"
        entitle(figure, sweep_question(SWEEP) or SWEEP, note(own, SWEEP) + words + lost_words(lost))
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, look: dict[str, str]) -> None:
    """The mean accuracy of an arm at each measured length, with its interval, and the longest length of training."""
    done = rows[rows["status"] == "completed"]
    lengths = sorted(int(column.removeprefix(PREFIX)) for column in rows if column.startswith(PREFIX))
    shares = {length: [float(v) for v in done[f"{PREFIX}{length}"].dropna()] for length in lengths}
    known = {length: own for length, own in shares.items() if own}
    means = [sum(own) / len(own) for own in known.values()]
    axes.plot(list(known), means, ms=5.5, mfc=PAPER, lw=1.6, **look)  # type: ignore[arg-type]
    for length, own in known.items():
        if bounds := interval(own):
            axes.plot([length] * 2, bounds, color=look["color"], lw=2.4, alpha=0.45)
    if "data.length_factors" in rows and lengths:
        axes.axvline(max(lengths) / max(rows["data.length_factors"].iloc[0]), color=MUTED, lw=1, ls=":", zorder=1)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.length_tasks RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
