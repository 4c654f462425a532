"""Do comparisons come out in bf16 as they do in fp32?

The runs: ``lmablate train sweeps=precision``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._studies import arm_of, stage
from lmablate.analysis._style import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    PAPER,
    entitle,
    message,
    new_figure,
    run,
    side_column,
    signed,
    style,
)
from lmablate.analysis.study_figures import NOTHING
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "precision"
ARMS = ("swiglu", "gelu")
PRECISIONS = ("fp32", "bf16")


def changes(runs: pd.DataFrame) -> pd.DataFrame:
    """GELU minus SwiGLU by seed, in per cent of SwiGLU's fp32 mean: a row a seed that all four arms completed, a column a
    precision, and their difference as `bf16 - fp32`."""
    done = runs[runs["status"] == "completed"].assign(arm=arm_of)
    table = done.pivot_table(index=["init_seed", "data_seed"], columns="arm", values="val_loss", aggfunc="first")
    wanted = [f"{arm} {precision}" for precision in PRECISIONS for arm in ARMS]
    if not set(wanted) <= set(table.columns):
        return pd.DataFrame(columns=[*PRECISIONS, "bf16 - fp32"])
    table = table[wanted].dropna()
    scale = table["swiglu fp32"].mean()
    out = pd.DataFrame({p: 100 * (table[f"gelu {p}"] - table[f"swiglu {p}"]) / scale for p in PRECISIONS})
    out["bf16 - fp32"] = out["bf16"] - out["fp32"]
    return out


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """The difference in each precision and what bf16 changes of it: every seed, the mean, its 95 % interval."""
    own = stage(runs, "evaluate")
    found = changes(own)
    if own.empty:
        return message(NOTHING.format(SWEEP))
    if found.empty:
        done = set(arm_of(own[own["status"] == "completed"]))
        lost = [arm for arm in dict.fromkeys(arm_of(own)) if arm not in done]
        return message(f"The four arms share no finished seed: no seed completed ({', '.join(lost)}).")
    with style():
        figure = new_figure(height=3.4)
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        names = {
            "fp32": "GELU − SwiGLU in fp32",
            "bf16": "GELU − SwiGLU in bf16",
            "bf16 - fp32": "what bf16 changes of it",
        }
        rows = []
        for y, (column, color) in enumerate(zip(names, PALETTE, strict=False)):
            values = [float(value) for value in found[column]]
            mean, bounds = sum(values) / len(values), interval(values)
            axes.plot(values, [y] * len(values), "o", ms=4, color=GRID, mec=MUTED, mew=0.7, zorder=2)
            if bounds:
                axes.plot(bounds, [y, y], color=color, lw=1.8, zorder=3)
            axes.plot([mean], [y], "o", ms=7, mfc=PAPER, mec=color, mew=1.6, zorder=4)
            rows.append((y, f"{signed(mean, 2)} %", INK))
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("change of the final validation loss, per cent")
        side_column(axes, "mean", rows)
        note = f"{len(found)} seeds, the same in all four arms  ·  line: 95 % interval  ·  small points: single seeds"
        entitle(figure, sweep_question(SWEEP) or SWEEP, note)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.precision RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
