"""What do shared keys and values cost in loss, and save in cache?

The runs: ``lmablate train sweeps=kv_heads``.
Decoding speed: ``lmablate inspect decode``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes

from lmablate.analysis._studies import arms_in_order, effects, positions, stage
from lmablate.analysis._style import MUTED, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, note, plain_log
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "kv_heads"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Change of the final loss against full attention, by what a token leaves in the cache; lower left is better."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    with style():
        figure = new_figure(height=4.4)
        _draw(figure.subplots(), own)
        lost = [arm for arm, effect in effects(own, "mha").items() if effect.mean is None]
        entitle(figure, sweep_question(SWEEP) or SWEEP, note(own, SWEEP) + lost_words(lost))
    return figure


def _draw(axes: Axes, runs: pd.DataFrame) -> None:
    styles, at, found = (
        arm_styles(arms_in_order(runs)),
        positions(runs, lambda row: row["kv_bytes_per_token"]),
        effects(runs, "mha"),
    )
    axes.axhline(0, color=MUTED, lw=1, zorder=1)
    for arm, effect in found.items():
        look = styles[arm]
        if effect.mean is None:
            continue
        axes.plot([at[arm]], [effect.mean], look.marker, ms=8, color=look.color, zorder=4)
        if effect.low is not None and effect.high is not None:
            axes.plot([at[arm]] * 2, [effect.low, effect.high], color=look.color, lw=2.4, alpha=0.45, zorder=3)
        axes.annotate(arm, (at[arm], effect.mean), xytext=(9, 4), textcoords="offset points", color=look.color)
    plain_log(axes, sorted(set(at.values())))
    axes.margins(x=0.12)
    axes.set(
        xlabel="KV-cache bytes a token (all layers, bf16)",
        title="Change of the final validation loss against mha, same seeds, per cent",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.kv_heads RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
