"""What published systems chose, and their ratios, over the years; and the lecture's statements about them.

The table: ``lmablate survey --out DIR``, which draws these figures too. No runs are needed.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from lmablate.analysis._style import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    PAPER,
    entitle,
    new_figure,
    parser_of,
    save,
    side_column,
    style,
)
from lmablate.core.errors import exit_on_config_error
from lmablate.core.paths import given_path
from lmablate.survey.table import Row, by_year

# Panels of `figure`: a column, its title, and the options from the oldest habit to the newest, with their names.
CHOICES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("norm", "Norm", {"layer": "LayerNorm", "rms": "RMSNorm"}),
    ("norm_position", "Place of the norm",
     {"post": "post", "deepnorm": "post, DeepNorm", "pre": "pre", "sandwich": "sandwich (double)", "output": "after the branch"}),
    ("position", "Positions", {"sinusoidal": "sinusoidal", "learned": "learned", "relative": "relative", "alibi": "ALiBi", "rope": "RoPE"}),
    ("activation", "Activation", {"relu": "ReLU", "gelu": "GELU", "relu2": "ReLU²", "geglu": "GeGLU", "swiglu": "SwiGLU"}),
    ("heads", "Keys and values", {"mha": "for each head", "mqa": "one for all", "gqa": "one a group", "mla": "latent"}),
    ("linear_bias", "Biases of linear layers", {"all": "all", "some": "some", "none": "none"}),
    ("block_layout", "Block", {"serial": "serial", "parallel": "parallel"}),
    ("tied", "Head tied to the embedding", {"yes": "tied", "no": "of its own"}),
)  # fmt: skip
# Panels of `ratios`: a column, its title, what the lecture says (a value or a range), whether the scale is logarithmic.
RATIOS: tuple[tuple[str, str, tuple[float, ...], bool], ...] = (
    ("ff_ratio", "FFN width / model width", (8 / 3, 4), True),
    ("heads_width", "Heads × head width / model width", (1,), True),
    ("head_dim", "Head width (channels)", (128,), True),
    ("aspect_ratio", "Model width / layers", (100, 150), True),
    ("n_layers", "Layers", (100,), True),
    ("vocab_size", "Vocabulary (entries)", (), True),
    ("weight_decay", "Weight decay, where known", (0.1,), False),
    ("dropout", "Dropout, where known", (0,), False),
)  # fmt: skip
BANDS = ("aspect_ratio",)
LABELS = 4  # systems named in a panel: the ones farthest from the middle
VERDICTS = {"supported": PALETTE[2], "contradicted": PALETTE[1], "not decided": MUTED}


def figure(table: Sequence[Row]) -> Figure:
    """Shares of the options among the releases of each year; `table` as from lmablate.survey.systems."""
    with style():
        drawn = new_figure(width=13.0, height=7.6)
        axes = drawn.subplots(2, 4).flat
        for one, (column, title, options) in zip(axes, CHOICES, strict=True):
            _shares(one, by_year(table, column), title, options)
        releases = sum(row["stands_for_release"] for row in table)
        entitle(
            drawn,
            "What published systems chose",
            f"{len(table)} systems of {releases} releases, each counted once, by its largest system  ·  above the bars: "
            "releases of that year",
        )
    return drawn


def _shares(axes: Axes, counts: Sequence[Row], title: str, options: Mapping[str, str]) -> None:
    years = [row["year"] for row in counts]
    unnamed = {key for row in counts for key in row} - {"year", "n", "unknown", *options}
    names = {**options, **{key: key for key in sorted(unnamed)}, "unknown": "not published"}
    bottom = [0.0] * len(years)
    for i, (option, name) in enumerate(names.items()):
        shares = [row[option] / row["n"] for row in counts]
        if not any(shares):
            continue
        color = GRID if option == "unknown" else PALETTE[i % len(PALETTE)]
        axes.bar(years, shares, bottom=bottom, color=color, width=0.82, label=name, edgecolor=PAPER, linewidth=0.6)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    for row in counts:
        axes.annotate(
            str(row["n"]),
            (row["year"], 1.0),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=MUTED,
        )
    axes.set_title(title, pad=14)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(FixedLocator(years[1::2]))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8.5, handlelength=1, columnspacing=1)


def ratios(table: Sequence[Row]) -> Figure:
    """Shapes, vocabulary and regularisation of every system over the years, with what the lecture says of them."""
    with style():
        drawn = new_figure(width=13.0, height=7.6)
        grid = drawn.subplots(2, 4)
        for axes, (column, title, said, log) in zip(grid.flat, RATIOS, strict=True):
            _scatter(axes, table, column, title, said, log)
        look = {"ls": "", "ms": 6, "mew": 1.3}
        handles = [
            Line2D([], [], marker="s", color=PALETTE[1], label="gated FFN", **look),  # type: ignore[arg-type]
            Line2D([], [], marker="o", color=PALETTE[0], mfc=PAPER, label="plain FFN", **look),  # type: ignore[arg-type]
            Line2D([], [], marker="D", color=MUTED, mfc=PAPER, label="not published", **look),  # type: ignore[arg-type]
            Line2D([], [], color=INK, lw=1, ls=(0, (4, 1.6)), label="the lecture's value or range"),
        ]
        drawn.legend(handles=handles, loc="outside upper right", ncols=4)
        entitle(
            drawn,
            "The ratios of published systems",
            "one mark a system; small marks: a smaller size of the same release  ·  within a year in no order of time",
        )
    return drawn


def _scatter(axes: Axes, table: Sequence[Row], column: str, title: str, said: Sequence[float], log: bool) -> None:
    known = [row for row in table if row[column] is not None]
    places = _places(known)
    if column in BANDS:
        axes.axhspan(*said, color=GRID, lw=0, zorder=0)
    for value in said:
        axes.axhline(value, color=INK, lw=1, ls=(0, (4, 1.6)), zorder=1)
    for row, x in zip(known, places, strict=True):
        look = {True: ("s", PALETTE[1], PALETTE[1]), False: ("o", PALETTE[0], PAPER)}.get(
            row["gated"], ("D", MUTED, PAPER)
        )
        size = 5.5 if row["stands_for_release"] else 2.8
        axes.plot([x], [row[column]], look[0], ms=size, mec=look[1], mfc=look[2], mew=1.2, zorder=3)
    if log:
        axes.set_yscale("log")
        _ticks(axes, [row[column] for row in known], said)
    _name_outliers(axes, known, places, column, log, said)
    axes.set_title(title)
    axes.set_xlim(min(row["year"] for row in table) - 0.6, max(row["year"] for row in table) + 0.6)
    axes.xaxis.set_major_locator(FixedLocator(sorted({row["year"] for row in table})[1::2]))
    axes.grid(axis="x", visible=False)


def _places(rows: Sequence[Row]) -> list[float]:
    """A year's systems side by side, so that equal values do not hide each other."""
    out = []
    for i, row in enumerate(rows):
        same = [j for j, other in enumerate(rows) if other["year"] == row["year"]]
        step = 0.76 / max(1, len(same) - 1)
        out.append(row["year"] + ((same.index(i) * step - 0.38) if len(same) > 1 else 0.0))
    return out


def _ticks(axes: Axes, values: Sequence[float], said: Sequence[float]) -> None:
    """At the lecture's values, and at doublings between the extremes: powers of two, or of a thousand where numbers are large."""
    low, high = min(values), max(values)
    unit = 1000 if low > 1000 else 1
    doublings = range(math.ceil(math.log2(low / unit)), math.floor(math.log2(high / unit)) + 1)
    powers = [float(unit * 2**k) for k in doublings]
    far = [value for value in powers if all(abs(math.log(value / one)) > 0.35 for one in said)]
    axes.yaxis.set_major_locator(FixedLocator(sorted([*far, *said])))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))


def _name_outliers(
    axes: Axes, rows: Sequence[Row], places: Sequence[float], column: str, log: bool, said: Sequence[float]
) -> None:
    """Name the releases that lie farthest from the median, where a name has room beside its mark and off the lecture's lines."""
    scaled = [math.log(row[column]) if log else float(row[column]) for row in rows]
    middle, reach = statistics.median(scaled), max(scaled) - min(scaled)
    taken = [(places[i] - 0.2, places[i] + 0.2, scaled[i]) for i in range(len(rows))]  # from, to, at
    named = 0
    for i in sorted(range(len(rows)), key=lambda i: -abs(scaled[i] - middle)):
        usual = scaled[i] == middle or any(math.isclose(rows[i][column], one, rel_tol=0.05) for one in said)
        if not rows[i]["stands_for_release"] or usual or named == LABELS:
            continue
        width = 0.16 + 0.19 * len(rows[i]["release"])
        others = [span for j, span in enumerate(taken) if j != i]
        for side in (1, -1):
            span = (min(places[i], places[i] + side * width), max(places[i], places[i] + side * width), scaled[i])
            inside = (
                min(row["year"] for row in rows) - 0.6 < span[0] and span[1] < max(row["year"] for row in rows) + 0.6
            )
            if inside and not any(_overlap(span, other, 0.06 * reach) for other in others):
                axes.annotate(
                    rows[i]["release"], (places[i], rows[i][column]), (5 * side, 0), textcoords="offset points",
                    ha="left" if side > 0 else "right", va="center", fontsize=7.5, color=MUTED,
                )  # fmt: skip
                taken.append(span)
                named += 1
                break


def _overlap(a: tuple[float, float, float], b: tuple[float, float, float], height: float) -> bool:
    return a[0] < b[1] and b[0] < a[1] and abs(a[2] - b[2]) < height


def verdicts(judged: Sequence[Mapping[str, Any]]) -> Figure:
    """Every statement with the share of releases that are as it says, its exact interval, and the verdict: up to 2024, and below it,
    thinner, since 2025."""
    bars = {"most": 0.5, "nearly_all": 0.9, "all": 1.0}
    with style():
        drawn = new_figure(width=13.0, height=1.9 + 0.34 * len(judged))
        axes = drawn.subplots()
        for y, claim in enumerate(judged):
            bar = bars[claim["rule"]]
            axes.plot([bar, bar], [y - 0.4, y + 0.4], color=INK, lw=2, zorder=2, solid_capstyle="butt")
            for one, dy, size in ((claim, -0.13, 6.5), (claim["later"], 0.21, 4.5)):
                color = VERDICTS[one["verdict"]]
                if one["interval_95"]:
                    axes.plot(one["interval_95"], [y + dy] * 2, color=color, lw=size / 3.6, zorder=3)
                if one["n"]:
                    look = {"ms": size, "mfc": PAPER, "mec": color, "mew": size / 3.6}
                    axes.plot([one["share"]], [y + dy], "o", zorder=4, clip_on=False, **look)
        axes.set_yticks(range(len(judged)), [claim["statement"] for claim in judged], fontsize=8.5)
        axes.set_ylim(len(judged) - 0.5, -0.5)
        axes.set_xlim(0, 1.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("releases that are as the statement says")
        for header, right, each in (("to 2024", 62, judged), ("since", 124, [claim["later"] for claim in judged])):
            counts = [(y, f"{one['count']} of {one['n']}", INK) for y, one in enumerate(each) if one["n"]]
            side_column(axes, header, counts, right)
        handles = [
            Line2D([], [], color=color, marker="o", mfc=PAPER, lw=1.8, label=word) for word, color in VERDICTS.items()
        ]
        handles.append(
            Line2D([], [], color=INK, lw=0, marker="|", ms=11, mew=2, label="what it has to pass (all: to reach)")
        )
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(handles))
        entitle(
            drawn,
            "What the lecture says that published systems do",
            "large: releases up to 2024, of which it speaks; small: those since  ·  line: exact 95 % interval; none for named systems  ·  "
            "on change: a rise too, up to 2024",
        )
    return drawn


def draw(table: Sequence[Row], judged: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the three figures into `folder`, as PNG and SVG."""
    figures = {"choices": figure(table), "ratios": ratios(table), "verdicts": verdicts(judged)}
    return [path for name, one in figures.items() for path in save(one, folder / name)]


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.survey --out DIR``: the figures alone."""
    from lmablate.runs.run_directory import check_writable
    from lmablate.survey import judged, systems

    parser = parser_of(__doc__)
    parser.add_argument("--out", type=given_path, required=True, metavar="DIR")
    out = parser.parse_args(argv).out
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    check_writable(out, "--out")
    print("\n".join(map(str, draw(systems(), judged(), out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
