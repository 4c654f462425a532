"""Every claim in one figure: the effect that was measured, with its interval, against the published one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lmablate.analysis._style import (
    BETWEEN,
    GRID,
    INK,
    MUTED,
    PAPER,
    count,
    entitle,
    message,
    new_figure,
    side_column,
    style,
)
from lmablate.analysis.verdicts import COLORS

LABEL = 58  # characters of a claim's words in a line
LINEAR = 1.0  # per cent; beyond it the axis is logarithmic
TICKS = (0, 0.5, 1, 3, 10, 100)
MARKERS = ("o", "s", "^")  # of the texts, in order
NOTES = (
    *(
        "point: mean over pairs of seeds",
        "line: 95 % interval",
        "an arrow: it goes on",
        "colour: the verdict on what is shown",
    ),
    "what is shown: the first test of a claim, which may have more",
)


def overview(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One row for each claim. Each of `rows` has: group, id, says, margin, verdict (on the claim, or None), `ours`: text, verdict (on the
    test that is shown), effect, interval (or None) and pairs of each text, and `published`: effect and params (or None). Effects are in per
    cent."""
    if not rows:
        return message("No claim has an effect yet.")
    texts = list(dict.fromkeys(one["text"] for row in rows for one in row["ours"]))
    places, heads = _places(rows)
    with style():
        figure = new_figure(height=2.0 + 0.33 * places[-1])
        axes = figure.subplots()
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        limit = _limit(rows)
        for y, row in zip(places, rows, strict=True):
            _draw(axes, y, row, texts, limit)
        _label(axes, places, heads, rows)
        axes.set_xlim(-limit, limit)
        ends = [sign * tick for tick in TICKS if tick <= limit for sign in (-1, 1)]
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(ends))))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(places[-1] + 0.7, heads[0][0] - 0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effect, per cent of the loss it is measured against (logarithmic beyond 1 per cent)")
        columns = (
            ("claim", _claims(rows), INK, 86),
            ("pairs", _pairs(rows), INK, 124),
            ("published at", _sizes(rows), MUTED, 200),
        )
        for name, words, color, right in columns:
            side_column(axes, name, [(y, word, color) for y, word in zip(places, words, strict=True)], right=right)
        figure.legend(handles=_legend(rows, texts), loc="outside upper left", ncols=5, frameon=False)
        entitle(figure, "", BETWEEN.join(NOTES))
    return figure


def _places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each row stands, and the headings of the groups between them."""
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    y, group = 0.0, None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            y += 0.15 if heads else 0.0
            heads.append((y, str(group)))
            y += 0.85
        places.append(y)
        y += 1.0
    return places, heads


def _label(
    axes: Any, places: Sequence[float], heads: Sequence[tuple[float, str]], rows: Sequence[Mapping[str, Any]]
) -> None:
    labels = [textwrap.shorten(f"{row['id']}  {row['says']}", 2 * LABEL - 6, placeholder=" …") for row in rows]
    words = ["\n".join(textwrap.wrap(label, LABEL)) for label in labels]
    axes.set_yticks([*places, *(y for y, _ in heads)], [*words, *(name for _, name in heads)])
    for label, row in zip(axes.get_yticklabels(), [*rows, *({} for _ in heads)], strict=True):
        if not row:
            label.set(fontweight="bold", color=INK)
        else:
            label.set(fontsize=8.5, linespacing=0.95, color=INK if row["ours"] else MUTED)


def _limit(rows: Sequence[Mapping[str, Any]]) -> float:
    found = [abs(one["effect"]) for row in rows for one in (*row["ours"], *row["published"])]
    ends = [abs(end) for row in rows for one in row["ours"] for end in one["interval"] or ()]
    return float(max(2.0, 1.4 * max(found), min(1.1 * max(ends, default=0.0), 4 * max(found))))


def _draw(axes: Any, y: float, row: Mapping[str, Any], texts: Sequence[str], limit: float) -> None:
    axes.fill_between([-row["margin"], row["margin"]], y - 0.32, y + 0.32, color=GRID, lw=0, zorder=0)
    for one in row["published"]:
        axes.plot([one["effect"]], [y], marker="D", ms=6, mfc="none", mec=INK, mew=1.1, lw=0, zorder=5)
    apart = 0.3 if len(row["ours"]) > 1 else 0.0
    for i, one in enumerate(row["ours"]):
        place, color = y + apart * (i - (len(row["ours"]) - 1) / 2), COLORS[one["verdict"]]
        if one["interval"]:
            low, high = one["interval"]
            axes.plot([max(low, -limit), min(high, limit)], [place, place], color=color, lw=1.8, zorder=2)
            for end, mark in ((low, "<"), (high, ">")):
                if abs(end) > limit:
                    axes.plot(
                        [limit if mark == ">" else -limit], [place], marker=mark, ms=6, color=color, clip_on=False
                    )
        place_of_text = texts.index(one["text"])
        marker, face = MARKERS[place_of_text % len(MARKERS)], PAPER if place_of_text else color
        axes.plot([one["effect"]], [place], marker, ms=6.5, mfc=face, mec=color, mew=1.6, zorder=4)


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    short = {"not testable at this scale": "out of reach", None: "not run"}
    return [short.get(row["verdict"], row["verdict"]) for row in rows]


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [", ".join(str(one["pairs"]) for one in row["ours"]) or "–" for row in rows]


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [list(dict.fromkeys(count(one["params"]) for one in row["published"] if one["params"])) for row in rows]
    return [", ".join(sizes) or ("?" if row["published"] else "–") for sizes, row in zip(known, rows, strict=True)]


def _legend(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Any]:
    seen = {one["verdict"] for row in rows for one in row["ours"]}
    handles: list[Any] = [Line2D([], [], color=COLORS[word], lw=3, label=word) for word in COLORS if word in seen]
    for i, text in enumerate(texts):
        handles.append(
            Line2D(
                [],
                [],
                color=MUTED,
                marker=MARKERS[i % len(MARKERS)],
                mfc=PAPER if i else MUTED,
                lw=0,
                label=f"ours, {text}",
            )
        )
    if any(row["published"] for row in rows):
        handles.append(Line2D([], [], color=INK, marker="D", ms=6, mfc="none", lw=0, label="published"))
    return [*handles, Patch(color=GRID, label="too small to count")]
