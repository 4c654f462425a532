"""How large is each layer's gradient before training, and what does depth change of it?

The table: ``lmablate inspect init --out DIR`` (layers.csv).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lmablate.analysis._style import (
    INK,
    MUTED,
    PAPER,
    arm_styles,
    entitle,
    message,
    new_figure,
    read_table,
    run,
    signed,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Xiong et al. 2020 (arXiv 2002.04745), theorem 1: the last layer's gradient norm goes with depth to these powers.
PUBLISHED = {"post": 0.0, "pre": -0.5}
ACROSS = 4  # panels in a row


def figure(table: pd.DataFrame) -> Figure:
    """Gradient norm by layer, a panel an arm and a line a depth; below, the last layer's norm and the residual stream."""
    if table.empty:
        return message("No untrained model was looked at: lmablate inspect init makes the table.")
    names = list(dict.fromkeys(table["arm"]))
    styles, depths = arm_styles(names), sorted(set(table["depth"]))
    across = min(ACROSS, len(names))
    rows = -(-len(names) // across)
    with style():
        figure = new_figure(height=1.2 + 2.5 * rows + 3.4)
        upper, lower = figure.subfigures(2, 1, height_ratios=(2.5 * rows, 3.6))
        panels = upper.subplots(rows, across, sharex=True, sharey=True, squeeze=False).flatten()
        for i, name in enumerate(names):
            _by_layer(panels[i], table[table["arm"] == name], name, depths, styles[name].color)
            if i % across == 0:
                panels[i].set_ylabel("gradient norm")
            if i + across >= len(names):
                panels[i].set_xlabel("layer")
                panels[i].tick_params(labelbottom=True)
        for empty in panels[len(names) :]:
            empty.set_visible(False)
        left, right = lower.subplots(1, 2)
        _by_depth(left, table, styles, depths)
        _stream(right, table, styles, depths[-1])
        n = int(table["inits"].min())
        note = (
            f"gradient of the FFN's last matrix on one batch, untrained  ·  geometric mean and 95 % interval over {n} draws of "
            "the weights  ·  the numbers beside the lines: depth"
        )
        entitle(figure, "How large is each layer's gradient before training?", note)
    return figure


def _by_layer(axes: Axes, mine: pd.DataFrame, name: str, depths: list[int], color: str) -> None:
    for i, depth in enumerate(depths):
        line = mine[mine["depth"] == depth].sort_values("layer")
        strength = 0.35 + 0.65 * (i + 1) / len(depths)
        axes.fill_between(line["layer"], line["low"], line["high"], color=color, alpha=0.15 * strength, lw=0)
        axes.plot(line["layer"], line["gradient"], color=color, alpha=strength, lw=1.4)
        if len(line):
            end = (line["layer"].iloc[-1], line["gradient"].iloc[-1])
            axes.annotate(
                str(depth),
                end,
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=8,
                color=MUTED,
                va="center",
                bbox={"fc": PAPER, "ec": "none", "alpha": 0.7, "pad": 0.4},
            )
    axes.set_yscale("log")
    axes.set_title(name)


def exponent(mine: pd.DataFrame) -> float:
    """The slope of the last layer's log gradient norm on log depth, by least squares over the depths of one arm."""
    last = mine[mine["layer"] == mine["depth"]]
    return float(np.polyfit(np.log(last["depth"]), np.log(last["gradient"]), 1)[0])


def _by_depth(axes: Axes, table: pd.DataFrame, styles: dict, depths: list[int]) -> None:
    """The last layer's norm over depth, and the slopes that the theorem has."""
    for name, mine in table.groupby("arm", sort=False):
        last, look = mine[mine["layer"] == mine["depth"]].sort_values("depth"), styles[name]
        spread = (last["gradient"] - last["low"], last["high"] - last["gradient"])
        label = f"{name}: goes with depth to the {signed(exponent(mine), 2)}"
        axes.errorbar(
            last["depth"], last["gradient"], yerr=spread, color=look.color, ls=look.line, marker=look.marker, ms=5,
            mfc=PAPER, mew=1.3, lw=1.4, label=label,
        )  # fmt: skip
    middle = float(np.exp(np.log(table.loc[table["layer"] == table["depth"], "gradient"]).mean()))
    at = np.array([depths[0], depths[-1]], dtype=float)
    notes = {"post": (0, 4), "pre": (-8, 6)}
    for name, power in PUBLISHED.items():
        line = middle * (at / at[0]) ** power
        axes.plot(at, line, color=MUTED, lw=1, ls=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"{name} in theory: {signed(power, 1) if power else '0'}", (at[1], line[1]), xytext=notes[name],
            textcoords="offset points", fontsize=8, color=MUTED, ha="right",
            bbox={"fc": PAPER, "ec": "none", "alpha": 0.7, "pad": 0.4},
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(depths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set(title="The last layer's gradient norm", xlabel="layers of the model", ylabel="gradient norm")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), labelcolor=INK)


def _stream(axes: Axes, table: pd.DataFrame, styles: dict, depth: int) -> None:
    for name, mine in table[table["depth"] == depth].groupby("arm", sort=False):
        line, look = mine.sort_values("layer"), styles[name]
        axes.plot(line["layer"], line["stream_rms"], color=look.color, ls=look.line, lw=1.4)
    axes.set_yscale("log")
    axes.set(title=f"The residual stream of {depth} layers", xlabel="layer", ylabel="RMS after the layer")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.gradient_norm DIR --out FILE``"""
    return run(lambda folder: figure(read_table(Path(folder) / "layers.csv", ("arm", "depth"))), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
