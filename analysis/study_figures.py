"""The two figures of a study: arms against a baseline, and a curve over a size; ours with intervals, published ones beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from lmablate.analysis._studies import (
    Effect,
    arm_of,
    arms_in_order,
    effects,
    increases,
    lost,
    positions,
    published,
    stage,
)
from lmablate.analysis._style import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    Arm,
    arm_styles,
    entitle,
    message,
    new_figure,
    side_column,
    signed,
    style,
)
from lmablate.analysis.finals import defined
from lmablate.schema.sweeps import sweep_question

NOTHING = "No finished evaluation runs of sweeps={0} yet: lmablate train sweeps={0}"
OTHERS = ("D", "s", "^", "v")  # published series


def against_baseline(
    runs: pd.DataFrame, sweep: str, baseline: str, metric: str = "val_loss", what: str = "final loss"
) -> Figure:
    """Left: final loss of the tuning runs by learning rate, an arm a line. Right: each arm's change against `baseline` over
    the same seeds in per cent, with its 95 % interval, and published changes as open marks."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(sweep))
    styles = arm_styles(arms_in_order(pd.concat([own, stage(runs, "tune")])))
    tuned = stage(runs, "tune")
    shared = stage(runs, "evaluate_shared")
    with style():
        figure = new_figure(height=2.6 + 0.34 * max(4, len(styles)))
        panels = figure.subplots(1, 2, width_ratios=(1, 1.35)) if len(tuned) else [None, figure.subplots()]
        if panels[0] is not None:
            _draw_rates(panels[0], tuned, styles, baseline)
        views = {"own rate": effects(own, baseline, metric)}
        if len(shared):
            views["shared rate"] = effects(shared, baseline, metric)
        _draw_effects(panels[1], views, styles, baseline, sweep, what)
        entitle(figure, sweep_question(sweep) or sweep, note(own, sweep))
    return figure


def over_size(
    runs: pd.DataFrame,
    sweep: str,
    where: Callable[[Mapping[str, Any]], float],
    xlabel: str,
    metric: str = "val_loss",
    what: str = "Final validation loss",
) -> Figure:
    """Increase of the final loss, or of another metric, over the best arm in per cent, by a size on a logarithmic axis, with
    within-seed 95 % intervals; published curves on the same axes."""
    own = stage(runs, "evaluate")
    if own.empty:
        return message(NOTHING.format(sweep))
    at, rises = positions(own, where), increases(own, metric)
    with style():
        figure = new_figure(height=4.8)
        axes = figure.subplots()
        for color, series in zip(PALETTE[1:], published(sweep), strict=False):
            _draw_published(axes, series, color)
        drawn = sorted((at[arm], effect) for arm, effect in rises.items() if effect.mean is not None)
        x = [point for point, _ in drawn]
        y = [effect.mean for _, effect in drawn]
        axes.plot(x, y, "-o", color=PALETTE[0], ms=6, mfc=PAPER, mew=1.5, lw=1.8, zorder=4, label="ours")
        for point, effect in drawn:
            if effect.low is not None and effect.high is not None:
                axes.plot([point, point], [effect.low, effect.high], color=PALETTE[0], lw=2.4, alpha=0.45, zorder=3)
        lost = [arm for arm, effect in rises.items() if effect.mean is None]
        for arm in lost:
            axes.plot([at[arm]], [0.97], "X", ms=9, color=PALETTE[0], transform=axes.get_xaxis_transform(), zorder=5)
        axes.axhline(0, color=MUTED, lw=1, zorder=1)
        plain_log(axes)
        axes.set(xlabel=xlabel, title=f"{what} over the best, per cent")
        axes.legend(loc="upper center")
        left_out = lost_words(lost, "crosses: ")
        entitle(figure, sweep_question(sweep) or sweep, note(own, sweep) + left_out)
    return figure


def _draw_published(axes: Axes, series: dict[str, Any], color: str) -> None:
    label = f"{series['label']} ({series['grade']})"
    if "points" in series:
        x, y = zip(*series["points"], strict=True)
        axes.plot(x, y, "--", marker="D", ms=4.5, mfc=PAPER, mew=1.1, lw=1.2, color=color, zorder=2, label=label)
    elif "band" in series:
        left, right, low, high = series["band"]
        axes.fill_between([left, right], low, high, color=color, alpha=0.12, lw=0, zorder=1, label=label)


def _draw_rates(axes: Axes, runs: pd.DataFrame, styles: Mapping[str, Arm], baseline: str) -> None:
    """Mean final loss of the tuning seeds at each learning rate; a cross at the top where a run was lost."""
    arms = arm_of(runs)
    for arm in arms_in_order(runs, baseline):
        rows, look = runs[arms == arm], styles[arm]
        bad = sorted(set(rows.loc[lost(rows), "optim.lr"]))
        whole = rows[~rows["optim.lr"].isin(bad)].groupby("optim.lr")["val_loss"].mean()
        axes.plot(whole.index, whole, linestyle=look.line, marker=look.marker, ms=4.5, mfc=PAPER, mew=1.1, lw=1.3,
                  color=look.color)  # fmt: skip
        for lr in bad:
            axes.plot([lr], [0.97], "X", ms=7, color=look.color, transform=axes.get_xaxis_transform(), clip_on=False)
    plain_log(axes, sorted(set(runs["optim.lr"])))
    axes.tick_params(axis="x", labelrotation=40)
    axes.set(xlabel="peak learning rate", title="Tuning: final validation loss, nats per token")


def _draw_effects(
    axes: Axes,
    views: Mapping[str, Mapping[str, Effect]],
    styles: Mapping[str, Arm],
    baseline: str,
    sweep: str,
    what: str,
) -> None:
    first = next(iter(views.values()))
    arms = list(first)
    axes.axvline(0, color=MUTED, lw=1, zorder=1)
    for shift, (view, found) in zip((0.0, 0.28), views.items(), strict=False):
        for y, arm in enumerate(arms):
            if (effect := found.get(arm)) is None:
                continue
            look, faint = styles[arm], 1.0 if view == "own rate" else 0.5
            if effect.low is not None:
                axes.plot(
                    [effect.low, effect.high], [y + shift] * 2, color=look.color, lw=2.2, alpha=0.5 * faint, zorder=3
                )
            if effect.mean is not None:
                axes.plot([effect.mean], [y + shift], look.marker, ms=7, color=look.color, alpha=faint, zorder=4)
    for mark, series in zip(OTHERS, published(sweep), strict=False):
        told = {arm: value for arm, value in series.get("values", {}).items() if arm in _stems(arms)}
        points = [(value, _stems(arms)[arm]) for arm, value in told.items()]
        if points:
            x, y = zip(*points, strict=True)
            label = f"{series['label']} ({series['grade']})"
            axes.plot(
                x,
                [value - 0.22 for value in y],
                mark,
                ms=5.5,
                mfc=PAPER,
                mec=INK,
                mew=1.1,
                ls="",
                zorder=5,
                label=label,
            )
    axes.set_yticks(range(len(arms)), [arm_name(arm, first[arm]) for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    words = "" if len(views) == 1 else "\nfainter: at the learning rate shared by all"
    axes.set(title=f"Against {baseline}", xlabel=f"change of the {what}, same seeds, per cent (below 0: better){words}")
    rows = [
        (y, signed(first[arm].mean, 2) if first[arm].mean is not None else "none", INK) for y, arm in enumerate(arms)
    ]  # type: ignore[arg-type]
    side_column(axes, "mean", rows)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.24), borderaxespad=0, fontsize=8.5)


def _stems(arms: list[str]) -> dict[str, int]:
    """Row of each arm by its name; of arms crossed with other keys, by the name before the comma at its first."""
    rows: dict[str, int] = {}
    for y, arm in enumerate(arms):
        rows.setdefault(arm, y)
        rows.setdefault(arm.partition(",")[0], y)
    return rows


def arm_name(arm: str, effect: Effect) -> str:
    """The arm, and how many of its runs were lost."""
    return f"{arm} ({effect.lost})" if effect.lost else arm


def note(runs: pd.DataFrame, sweep: str) -> str:
    """What a figure of a study rests on: seeds an arm, intervals, grades of what is published, what equal size means."""
    pairs = runs[["init_seed", "data_seed"]].apply(tuple, axis=1)  # a seed has a run at each learning rate of a tuning
    seeds = pairs.groupby(arm_of(runs)).nunique()
    low, high = int(seeds.min()), int(seeds.max())
    n = str(low) if low == high else f"{low} to {high}"
    grades = "V1 read in the paper, V2 in a transcription, V3 off a figure, R a log of one seed"
    told = f"  ·  published: {grades}" if published(sweep) else ""
    if (lost(runs) & (runs["status"] == "completed")).any():
        told = f"  ·  lost: as good as a unigram model, and no pair{told}"
    sizes = defined(sweep_question(sweep) or "")
    return f"ours: {n} seeds an arm, line: 95 % interval (Student t){told}" + (f"\n{sizes}" if sizes else "")


def lost_words(arms: Sequence[str], prefix: str = "") -> str:
    """What a note says of arms that are not drawn, since all their runs diverged."""
    return f"  ·  {prefix}no seed completed ({', '.join(arms)})" if arms else ""


def plain_log(axes: Axes, ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis whose ticks are plain numbers: the given ones where they are few, else powers of two."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks) if 0 < len(ticks) < 9 else LogLocator(base=2, numticks=14))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
