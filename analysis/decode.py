"""How fast arms read and write over context length and batch (``lmablate inspect decode``)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from lmablate.analysis._style import MUTED, PAPER, Arm, arm_styles, count, entitle, new_figure, style


def figure(table: pd.DataFrame) -> Figure:
    """Seconds of a step and speed over the first arm's, for each batch, measured (points) beside predicted (dashes); the cache
    of a text and the speed of reading prompts. `table`: a row an arm, batch and length, as ``decode.csv`` has."""
    arms = list(dict.fromkeys(table["arm"]))
    styles, first = arm_styles(arms), arms[0]
    batches = sorted(set(table["batch"]))
    with style():
        drawn = new_figure(width=3.6 * (len(batches) + 1) + 0.6, height=7.4)
        grid = drawn.subplots(2, len(batches) + 1, squeeze=False)
        for column, batch in enumerate(batches):
            here = table[table["batch"] == batch]
            texts = f"{batch} text" + ("s" if batch > 1 else "")
            _times(grid[0, column], here, styles, f"One token of each of {texts}")
            _ratios(grid[1, column], here, styles, first, f"Speed over {first}, {texts}")
        for axes in grid[0, :-1]:
            axes.set_ylim(min(a.get_ylim()[0] for a in grid[0, :-1]), max(a.get_ylim()[1] for a in grid[0, :-1]))
        _cache(grid[0, -1], table, styles)
        read = table[table["prefill_ms"].notna()]
        most = max(batches, key=lambda batch: (read[read["batch"] == batch]["length"].nunique(), batch))
        _prefill(grid[1, -1], read[read["batch"] == most], styles, most)
        for axes in grid.flat:
            _lengths(axes, sorted(set(table["length"])))
        _legend(grid[1, len(batches) - 1], styles, arms)
        rates = f"{table['bandwidth'].median() / 1e9:.1f} GB/s and {table['peak'].median() / 1e9:,.0f} GFLOP/s"
        note = (
            f"Point: median of {table['rounds'].min()} steps, arms in turn, line: its 95 % interval  ·  dashes: the longer of bytes over "
            f"bandwidth and FLOPs over matmul peak, {rates} measured in the same rounds"
        )
        entitle(drawn, "Writing with a cache, over context length", note)
    return drawn


def _times(axes: Any, here: pd.DataFrame, styles: dict[str, Arm], title: str) -> None:
    for arm, rows in _by_arm(here):
        look = styles[arm]
        axes.plot(rows["length"], rows["predicted_ms"], color=look.color, lw=1.2, ls=(0, (4, 1.6)), zorder=2)
        axes.vlines(rows["length"], rows["low_ms"], rows["high_ms"], color=look.color, lw=1.6, zorder=3)
        axes.plot(rows["length"], rows["step_ms"], look.marker, ms=5.5, mfc=PAPER, mec=look.color, mew=1.5, zorder=4)
    axes.set(title=title, yscale="log", ylabel="milliseconds")
    _plain(axes)


def _ratios(axes: Any, here: pd.DataFrame, styles: dict[str, Arm], first: str, title: str) -> None:
    base = here[here["arm"] == first].set_index("length")
    for arm, rows in _by_arm(here):
        look, places = styles[arm], rows["length"].to_numpy()
        measured = base.loc[places, "step_ms"].to_numpy() / rows["step_ms"].to_numpy()
        predicted = base.loc[places, "predicted_ms"].to_numpy() / rows["predicted_ms"].to_numpy()
        axes.plot(places, predicted, color=look.color, lw=1.2, ls=(0, (4, 1.6)), zorder=2)
        axes.plot(places, measured, look.marker, ms=5.5, mfc=PAPER, mec=look.color, mew=1.5, zorder=3)
    axes.set(title=title, ylim=(0, None), ylabel="times as fast")


def _cache(axes: Any, table: pd.DataFrame, styles: dict[str, Arm]) -> None:
    for arm, rows in _by_arm(table[table["batch"] == table["batch"].min()]):
        look = styles[arm]
        size = rows["cache_bytes"] / rows["batch"] / 2**20
        axes.plot(rows["length"], size, color=look.color, marker=look.marker, ms=5.5, mfc=PAPER, mew=1.5, lw=1.4)
    axes.set(title="Cache of one text", yscale="log", ylabel="MiB")
    _plain(axes)


def _prefill(axes: Any, table: pd.DataFrame, styles: dict[str, Arm], batch: int) -> None:
    for arm, rows in _by_arm(table):
        look = styles[arm]
        predicted = 1e3 * rows["batch"] * rows["length"] / rows["prefill_predicted_ms"]
        axes.plot(rows["length"], predicted, color=look.color, lw=1.2, ls=(0, (4, 1.6)), zorder=2)
        axes.plot(
            rows["length"], rows["prefill_tokens_per_second"], look.marker, ms=5.5, mfc=PAPER, mec=look.color, mew=1.5
        )
    axes.set(title=f"Reading a prompt, {batch} at once", ylim=(0, None), ylabel="tokens a second")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))


def _by_arm(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(arm, table[table["arm"] == arm].sort_values("length")) for arm in dict.fromkeys(table["arm"])]


def _lengths(axes: Any, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(lengths[0] / 1.4, lengths[-1] * 1.4)
    axes.set_xlabel("tokens of context")


def _plain(axes: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, as plain numbers."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(axes: Any, styles: dict[str, Arm], arms: list[str]) -> None:
    shown = [
        Line2D([], [], color=styles[arm].color, marker=styles[arm].marker, mfc=PAPER, mew=1.5, ls="", label=arm)
        for arm in arms
    ]
    shown.append(Line2D([], [], color=MUTED, lw=1.2, ls=(0, (4, 1.6)), label="predicted"))
    axes.legend(handles=shown, loc="upper left", handletextpad=0.4, fontsize=8.5)
