"""How deep should a model of a given width be, and does that depth grow with the width?

The runs: ``lmablate train sweeps=width_depth``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, stage
from lmablate.analysis._style import PAPER, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, note, plain_log
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "width_depth"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Final loss by depth, a line a width, and by parameters, where the lowest line is the best shape of a size."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    arms = arm_of(own)
    widths = own.get("model.d_model", arms.str.partition(",")[0])
    own = own.assign(width=[f"{width:.0f} channels" if isinstance(width, int | float) else width for width in widths])
    done = own[own["status"] == "completed"]
    styles = arm_styles(dict.fromkeys(own["width"]))
    size = "n_params_non_embedding"
    columns = {"model.n_layers": "layers", **({size: "non-embedding parameters"} if size in own else {})}
    with style():
        figure = new_figure(height=4.6)
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, (column, words) in zip(panels, columns.items(), strict=True):
            for width, rows in done.groupby("width", sort=False):
                look, by = styles[str(width)], rows.groupby(column)["val_loss"]
                axes.plot(
                    by.mean().index,
                    by.mean(),
                    marker=look.marker,
                    ms=5.5,
                    mfc=PAPER,
                    lw=1.6,
                    color=look.color,
                    label=width,
                )
                for at, losses in by:
                    if bounds := interval([float(loss) for loss in losses]):
                        axes.plot([at, at], bounds, color=look.color, lw=2.4, alpha=0.45)
            plain_log(axes, sorted(set(own[column])) if column == "model.n_layers" else ())
            axes.set(xlabel=words)
        panels[0].set(title="Final validation loss, nats per token")
        panels[0].legend(loc="upper right")
        lost = [arm for arm in dict.fromkeys(arms) if (own.loc[arms == arm, "status"] != "completed").all()]
        entitle(figure, sweep_question(SWEEP) or SWEEP, note(own, SWEEP) + lost_words(lost))
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.width_depth RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
