"""Where one run predicts better than another: by how often a token occurs, and by where in the text it stands.

The tables: ``lmablate compare``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import MUTED, PALETTE, entitle, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "frequency": "By how often the token occurs in the training text",
    "document": "By its place in the document, in tokens",
    "window": "By how many tokens were read before it",
}
LINE = 120  # characters of labels that fit side by side under a panel
FEW = 20  # tokens, whose mean says little and whose interval would hide the rest


def figure(groups: pd.DataFrame, names: tuple[str, str]) -> Figure:
    """`groups`: rows of (by, bin, tokens, difference, low, high), the difference in nats per token, second run less first;
    `names`: what the runs are called. Pure."""
    kinds = [kind for kind in TITLES if kind in set(groups["by"])]
    with style():
        fig = new_figure(height=2.5 * len(kinds) + 0.9)
        panels = fig.subplots(len(kinds), 1, squeeze=False)[:, 0]
        for axes, kind in zip(panels, kinds, strict=True):
            own = groups[groups["by"] == kind]
            _draw(axes, own[own["tokens"] >= min(FEW, own["tokens"].max())], TITLES[kind])
        fig.supylabel("difference, nats per token", fontsize=9.5)
        entitle(
            fig,
            f"{names[1]} less {names[0]}",
            f"Above 0: {names[0]} predicts better. 95 % intervals, clustered; the small figures are tokens, "
            f"bins of fewer than {FEW} are left out.",
        )
    return fig


def _draw(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.9)
    known = rows[rows["low"].notna()]
    at = [list(rows["bin"]).index(name) for name in known["bin"]]
    axes.vlines(at, known["low"], known["high"], color=PALETTE[0], linewidth=2.2)
    axes.plot(range(len(rows)), rows["difference"], "o", color=PALETTE[0], markersize=5)
    ends = [*rows["difference"], 0.0, *known["low"], *known["high"]]
    reach = 3 * max(1e-9, max(abs(value) for value in rows["difference"]))
    low, high = max(min(ends), -reach), min(max(ends), reach)  # an interval of a few tokens must not hide the others
    room = (high - low) or 1.0  # no difference at all: a run beside itself
    axes.set_ylim(low - 0.12 * room, high + 0.22 * room)
    for x, tokens in enumerate(rows["tokens"]):
        axes.annotate(
            f"{tokens:,}", (x, 1), xycoords=("data", "axes fraction"), xytext=(0, -2), textcoords="offset points",
            ha="center", va="top", fontsize=7.5, color=MUTED,
        )  # fmt: skip
    long = sum(len(name) + 2 for name in rows["bin"]) > LINE  # slanted, names as long as 16,384-32,767 do not meet
    axes.set_xticks(range(len(rows)), list(rows["bin"]), rotation=25 if long else 0, ha="right" if long else "center")
    if long:
        axes.tick_params(axis="x", pad=0)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_title(title)
