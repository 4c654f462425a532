"""Which attention can look something up?

The runs: ``lmablate train sweeps=skills``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, arms_in_order, stage, with_lost
from lmablate.analysis._style import MUTED, arm_styles, entitle, message, new_figure, run, side_column, style
from lmablate.analysis.study_figures import NOTHING
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEP = "skills"
BASELINE = "full"
LENGTH = "val_accuracy_by_length."


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """The share of right answers of every run, and of each arm at longer texts; `runs` as from load_runs or study_runs."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(SWEEP))
    own = own.reindex(columns=list(dict.fromkeys([*own.columns, "val_accuracy", "data.chance_accuracy"])))
    lengths = sorted((c for c in own.columns if c.startswith(LENGTH) and own[c].notna().any()), key=_tokens)
    with style():
        figure = new_figure(height=3.6)
        parts = figure.subplots(1, 2 if lengths else 1, squeeze=False, width_ratios=[3, 2] if lengths else [1])[0]
        _by_arm(parts[0], own)
        if lengths:
            _by_length(parts[1], own, lengths)
        seeds = own["init_seed"].nunique()
        note = f"{seeds} seed{'s' * (seeds != 1)} an arm, one point each; the line is their mean"
        chance = own["data.chance_accuracy"].dropna()
        note += f"  ·  a guess is right in {100 * chance.iloc[0]:.2g} %" if len(chance) else ""
        entitle(figure, sweep_question(SWEEP) or SWEEP, note)
    return figure


def _by_arm(axes: Axes, runs: pd.DataFrame) -> None:
    arms, names = arms_in_order(runs, BASELINE), []
    looks, rows = arm_styles(arms), []
    for y, arm in enumerate(arms):
        mine = runs[arm_of(runs) == arm]
        names.append(with_lost(arm, mine))
        values = 100 * mine["val_accuracy"].dropna()
        if values.empty:
            continue
        axes.plot([values.mean()] * 2, [y - 0.28, y + 0.28], color=looks[arm].color, lw=2)
        axes.plot(values, [y] * len(values), looks[arm].marker, ms=6, mfc="none", mec=looks[arm].color, mew=1.3)
        rows.append((y, f"{values.mean():.1f} %", looks[arm].color))
    axes.set_yticks(range(len(arms)), names)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("right answers, per cent")
    side_column(axes, "mean", rows)


def _by_length(axes: Axes, runs: pd.DataFrame, lengths: list[str]) -> None:
    arms = arms_in_order(runs, BASELINE)
    looks = arm_styles(arms)
    for arm in arms:
        means = 100 * runs[arm_of(runs) == arm][lengths].mean()
        axes.plot(
            [_tokens(c) for c in lengths], means, marker=looks[arm].marker, color=looks[arm].color, lw=1.6, label=arm
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([_tokens(c) for c in lengths], [str(_tokens(c)) for c in lengths])
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.axvline(_tokens(lengths[0]), color=MUTED, lw=1, ls=":")
    axes.set_xlabel("tokens of a text (dotted: as in training)")
    axes.set_ylabel("right answers, per cent")


def _tokens(column: str) -> int:
    return int(column.removeprefix(LENGTH))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.skills RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
