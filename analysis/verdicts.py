"""Verdicts on claims: each test's effect with its interval, the margin within which a difference counts as none, and the
published effect."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lmablate.analysis._style import GRID, INK, MUTED, PALETTE, PAPER, entitle, message, new_figure, side_column, style
from lmablate.report.claim_tables import DECIDED, SIGNS, group_heading

MOST = 40  # tests; the tables have all
LABEL = 56  # characters of a test's words in a line
LEADING = 0.38  # between two of these lines, in rows
COLORS = {
    "supported": PALETTE[2], "contradicted": PALETTE[1], "no difference": PALETTE[0], "not decided": MUTED,
    "not testable at this scale": MUTED,
}  # fmt: skip


def verdicts(claims: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """One row for each test with an effect (claims as from claims.judge), under the name of its study where there are
    several. An arrow: the interval goes on. A full point: the verdict holds for all studies together."""
    rows = [(claim, test) for claim in claims for test in claim["tests"] if is_drawn(test)]
    if not rows:
        return message("No claim has two arms that share a seed, so there is nothing to judge.")
    left_out, rows = len(rows) - MOST, rows[:MOST]
    several = len({claim["study"] for claim, _ in rows if claim["scope"] == "asked"}) > 1
    places, heads = _places(rows)
    limit = _limit(rows)
    with style():
        figure = new_figure(height=2.1 + 0.42 * max(1, places[-1]))
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        for y, (claim, test) in zip(places, rows, strict=True):
            _draw(axes, y, claim, test, limit, full=several and _holds(test))
        lines = [line for y, row in zip(places, rows, strict=True) for line in _lines(y, *row)]
        axes.set_yticks([y for y, _ in (*lines, *heads)], [words for _, words in (*lines, *heads)])
        for label in axes.get_yticklabels()[len(lines) :]:
            label.set(fontweight="bold", color=INK)
        axes.set_ylim(places[-1] + 0.6, min(places[0], *(y for y, _ in heads), 0) - 0.5)
        axes.set_xlim(-1.03 * limit, 1.03 * limit)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effect, per cent of the arms it is measured against (diverged runs: percentage points)")
        side_column(axes, "pairs", [(y, str(test["n"]), INK) for y, (_, test) in zip(places, rows, strict=True)])
        handles = _legend(rows, several)
        figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False)
        note = "point: mean over pairs  ·  line: 95 % interval  ·  verdicts after Holm's correction over the tests of a study"
        entitle(figure, title, note + (f"  ·  {left_out} more tests in the tables" if left_out > 0 else ""))
    return figure


def is_drawn(test: Mapping[str, Any]) -> bool:
    """Is it a contrast with an effect? Statistics over runs have units of their own, and stand in the tables."""
    return test["effect"] is not None and test["unit"] in SIGNS


def _places(rows: Sequence[tuple[Mapping[str, Any], Any]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each row stands, with room for its lines, and the headings between rows; none where all rows are of one study."""
    names = [group_heading(claim) for claim, _ in rows]
    headed = len(set(names)) > 1
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    top = -0.5
    for name, before, row in zip(names, [None, *names], rows, strict=False):
        if headed and name != before:
            top += 0.2 if heads else 0.0
            heads.append((top + 0.5, name))
            top += 0.75
        height = max(1.0, LEADING * len(_words(*row)) + 0.25)
        places.append(top + height / 2)
        top += height
    return places, heads


def _limit(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> float:
    reach = max(max(abs(test["effect"]), test["margin"], *map(abs, _published(claim, test))) for claim, test in rows)
    ends = [abs(end) for _, test in rows for end in test["interval_95"] or ()]
    return float(min(max([1.15 * reach, *(1.05 * end for end in ends)]), 3 * reach))


def _holds(test: Mapping[str, Any]) -> bool:
    """Is the verdict decided, and the same when all studies are corrected together?"""
    return test["verdict"] in DECIDED and test["joint"] is not None and test["joint"]["verdict"] == test["verdict"]


def _legend(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], several: bool) -> list[Any]:
    seen = [word for word in COLORS if any(test["verdict"] == word for _, test in rows)]
    handles: list[Any] = [Line2D([], [], color=COLORS[w], marker="o", mfc=PAPER, lw=1.8, label=w) for w in seen]
    if several and any(_holds(test) for _, test in rows):
        handles.append(Line2D([], [], color=INK, marker="o", lw=0, label="full: holds for all studies together"))
    handles.append(Patch(color=GRID, label="margin"))
    if any(_published(claim, test) for claim, test in rows):
        handles.append(Line2D([], [], color=INK, marker="D", ms=5, mfc="none", lw=0, label="published"))
    return handles


def _lines(y: float, claim: Mapping[str, Any], test: Mapping[str, Any]) -> list[tuple[float, str]]:
    """A test's words in lines about `y`, each a label of its own: a browser's font would shift the lines of one label."""
    words = _words(claim, test)
    return [(y + LEADING * (i - (len(words) - 1) / 2), line) for i, line in enumerate(words)]


def _words(claim: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    where = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in test["where"].items())
    return textwrap.wrap(f"{claim['id']}  {test['says']}", LABEL) + ([where] if where else [])


def _published(claim: Mapping[str, Any], test: Mapping[str, Any]) -> list[float]:
    """Published effects are of a claim's first test."""
    if test["says"] != claim["tests"][0]["says"]:
        return []
    return [entry["effect"] for entry in claim["published"] if entry["effect"] is not None]


def _draw(axes: Any, y: float, claim: Mapping[str, Any], test: Mapping[str, Any], limit: float, full: bool) -> None:
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
    axes.plot([test["effect"]], [y], "o", ms=7, mfc=color if full else PAPER, mec=color, mew=1.8, zorder=4)
    for effect in _published(claim, test):
        axes.plot([effect], [y], marker="D", ms=5, mfc="none", mec=INK, mew=1, lw=0, zorder=3)
