"""Verdicts on claims: each test's effect with its interval, the margin within which a difference counts as none, and the
published effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lmablate.analysis._style import GRID, INK, MUTED, PALETTE, PAPER, entitle, message, new_figure, side_column, style

MOST = 30
COLORS = {
    "supported": PALETTE[2], "contradicted": PALETTE[1], "no difference": PALETTE[0], "not decided": MUTED,
    "not testable at this scale": MUTED,
}  # fmt: skip


def verdicts(claims: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """One row for each test with an effect (claims as from claims.judge). An arrow: the interval goes on."""
    rows = [(claim, test) for claim in claims for test in claim["tests"] if test["effect"] is not None][:MOST]
    if not rows:
        return message("No claim has two arms that share a seed, so there is nothing to judge.")
    reach = max(max(abs(test["effect"]), test["margin"], *map(abs, _published(claim, test))) for claim, test in rows)
    ends = [abs(end) for _, test in rows for end in test["interval_95"] or ()]
    limit = min(max([1.15 * reach, *(1.05 * end for end in ends)]), 3 * reach)
    with style():
        figure = new_figure(height=1.9 + 0.42 * max(2, len(rows)))
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        for y, (claim, test) in enumerate(rows):
            _draw(axes, y, claim, test, limit)
        axes.set_yticks(range(len(rows)), [_name(claim, test) for claim, test in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-1.03 * limit, 1.03 * limit)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effect, per cent of the arms it is measured against (diverged runs: percentage points)")
        side_column(axes, "pairs", [(y, str(test["n"]), INK) for y, (_, test) in enumerate(rows)])
        seen = [word for word in COLORS if any(test["verdict"] == word for _, test in rows)]
        handles: list[Any] = [Line2D([], [], color=COLORS[w], marker="o", mfc=PAPER, lw=1.8, label=w) for w in seen]
        handles.append(Patch(color=GRID, label="margin"))
        if any(_published(claim, test) for claim, test in rows):
            handles.append(Line2D([], [], color=INK, marker="D", ms=5, mfc="none", lw=0, label="published"))
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(handles), frameon=False)
        entitle(
            figure,
            title,
            "point: mean over pairs  ·  line: 95 % interval  ·  verdicts after Holm's correction over all tests",
        )
    return figure


def _name(claim: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    words = test["says"] if len(test["says"]) <= 58 else test["says"][:56].rsplit(" ", 1)[0] + " …"
    where = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in test["where"].items())
    return f"{claim['id']}  {words}" + (f"\n{where}" if where else "")


def _published(claim: Mapping[str, Any], test: Mapping[str, Any]) -> list[float]:
    """Published effects are of a claim's first test."""
    if test["says"] != claim["tests"][0]["says"]:
        return []
    return [entry["effect"] for entry in claim["published"] if entry["effect"] is not None]


def _draw(axes: Any, y: int, claim: Mapping[str, Any], test: Mapping[str, Any], limit: float) -> None:
    color, margin = COLORS[test["verdict"]], test["margin"]
    axes.fill_between([-margin, margin], y - 0.3, y + 0.3, color=GRID, lw=0, zorder=0)
    if test["interval_95"]:
        low, high = test["interval_95"]
        axes.plot([max(low, -limit), min(high, limit)], [y, y], color=color, lw=1.8, zorder=2)
        for end, mark in ((low, "<"), (high, ">")):
            if abs(end) > limit:
                axes.plot(
                    [limit if mark == ">" else -limit], [y], marker=mark, ms=6, color=color, clip_on=False, zorder=5
                )
    axes.plot([test["effect"]], [y], "o", ms=7, mfc=PAPER, mec=color, mew=1.8, zorder=4)
    for effect in _published(claim, test):
        axes.plot([effect], [y], marker="D", ms=5, mfc="none", mec=INK, mew=1, lw=0, zorder=3)
