"""Where the time of a training step goes, beside where its FLOPs go, and beside the published shares.

The tables: ``lmablate inspect time``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from lmablate.analysis._style import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    entitle,
    new_figure,
    parser_of,
    percent,
    read_table,
    save,
    style,
)
from lmablate.core.errors import exit_on_config_error
from lmablate.core.files import make_folder
from lmablate.core.paths import given_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order of the bars; greys for what the published table leaves out.
COLORS = {
    "tensor contractions": PALETTE[0],
    "fused attention": PALETTE[5],
    "normalisation and softmax": PALETTE[1],
    "element-wise": PALETTE[4],
    "data movement": PALETTE[2],
    "optimizer": "#8a939b",
    "host": "#b9c0c6",
    "other": "#dde1e4",
}
DARK = ("tensor contractions", "normalisation and softmax", "data movement")
LABELLED = 0.035  # of a bar: the least that has room for its share in figures
Bars = list[tuple[str, dict[str, float]]]


def published() -> dict[str, dict[str, float]]:
    """Shares of FLOPs and of time by kind, as Ivanov et al. have them."""
    path = Path(__file__).with_name("published.yaml")
    series = yaml.safe_load(path.read_text())["step_time"]["series"][0]
    return {"FLOPs": _fractions(series["flops"]), "time": _fractions(series["time"])}


def _fractions(percent_by_kind: dict[str, float]) -> dict[str, float]:
    return {kind: value / 100 for kind, value in percent_by_kind.items()}


def figure(split: pd.DataFrame, parts: pd.DataFrame | None = None) -> Figure:
    """`split`: rows of (config, mode, kind, flops_share, time_share); `parts`: of (config, part, mode, ratio, ratio_low,
    ratio_high) and their milliseconds. Pure."""
    bars = _bars(split)
    compared = parts is not None and parts["config"].nunique() > 1
    rows = parts.groupby(["part", "mode"], sort=False).ngroups * (parts["config"].nunique() + 1) if compared else 0
    heights = [0.3 * len(bars) + 1.1, *([0.24 * rows + 1.0] if compared else [])]
    with style():
        fig = new_figure(height=sum(heights) + 0.9)
        axes = fig.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        _draw_bars(axes[0], bars)
        if compared:
            assert parts is not None
            _draw_parts(axes[1], parts)
        entitle(
            fig,
            "Where the FLOPs of a training step go, and where its time",
            "Published: Ivanov et al. 2021 (arXiv 2007.00072, table 1), one BERT encoder layer on a V100; three kinds only. "
            "Ours: interruptions left out.",
        )
    return fig


def _bars(split: pd.DataFrame) -> Bars:
    bars: Bars = [(f"published: {what}", shares) for what, shares in published().items()]
    several = split["config"].nunique() > 1
    for (config, mode), rows in split.groupby(["config", "mode"], sort=False):
        names = (config, mode) if several else (mode, mode)  # of a pair of bars, which belong together
        for name, what, column in zip(names, ("FLOPs", "time"), ("flops_share", "time_share"), strict=True):
            known = rows[rows[column].notna()]
            bars.append((f"{name}: {what}", dict(zip(known["kind"], known[column], strict=True))))
    return bars


def _draw_bars(axes: Axes, bars: Bars) -> None:
    places, y = [], 0.0
    for i in range(len(bars)):
        places.append(y)
        y += 1.0 if i % 2 == 0 else 1.45  # the two bars of a measurement stand together
    for place, (_, shares) in zip(places, bars, strict=True):
        left = 0.0
        for kind, color in COLORS.items():
            share = max(shares.get(kind, 0.0), 0.0)
            axes.barh(place, share, left=left, height=0.82, color=color, edgecolor=PAPER, linewidth=0.6)
            if share >= LABELLED:
                axes.text(
                    left + share / 2, place, _label(share), ha="center", va="center", fontsize=8,
                    color=PAPER if kind in DARK else INK,
                )  # fmt: skip
            left += share
    axes.set_yticks(places, [name for name, _ in bars])
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    axes.grid(visible=False, axis="y")
    shown = [kind for kind in COLORS if any(shares.get(kind, 0) >= 0.001 for _, shares in bars)]
    handles = [axes.barh(0, 0, color=COLORS[kind]) for kind in shown]
    axes.legend(
        handles,
        shown,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        columnspacing=1.2,
        handlelength=1.0,
        borderpad=0,
    )


def _label(share: float) -> str:
    """Not 100 % where something is left."""
    return f"{100 * share:.1f} %" if 0.985 < share < 1 else percent(share)


def _draw_parts(axes: Axes, parts: pd.DataFrame) -> None:
    """Ratios to the first configuration, grouped by part."""
    ticks, names, y = [], [], 0.0
    styles = dict(zip(parts["config"].unique(), PALETTE * 3, strict=False))
    for (part, mode), rows in parts.groupby(["part", "mode"], sort=False):
        title = {"norm": "norm alone", "block": "block", "step": "whole step"}.get(str(part), str(part))
        ticks.append(y)
        names.append(f"{title}, {mode}")
        for row in rows.itertuples():
            y += 1
            axes.plot([row.ratio_low, row.ratio_high], [y, y], color=styles[row.config], linewidth=2.2)
            axes.plot(row.ratio, y, "o", color=styles[row.config], markersize=5)
            ticks.append(y)
            names.append(f"{row.config} · {row.milliseconds:.3g} ms")
        y += 1.6
    axes.axvline(1, color=MUTED, linewidth=0.9)
    axes.set_yticks(ticks, names)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_fontweight("normal" if " ms" in name else "bold")
    axes.set_ylim(y - 0.6, -0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time against the first configuration, median and 95 % interval")


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.step_time DIR --out FILE``: DIR as ``lmablate.inspect time`` left it."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=given_path)
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help="writes FILE.png and FILE.svg")
    words = parser.parse_args(argv)
    split = read_table(words.folder / "split.csv", ("config", "mode"))
    parts = words.folder / "parts.csv"
    drawn = figure(split, read_table(parts, ("config", "mode", "part")) if parts.is_file() else None)
    make_folder(words.out.parent)
    print("\n".join(map(str, save(drawn, words.out.with_suffix("")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
