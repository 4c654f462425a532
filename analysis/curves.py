"""Loss against tokens, and final loss by arm, for any results directory."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lmablate.analysis._style import (
    INK,
    MUTED,
    PAPER,
    STEPS,
    Arm,
    arm_styles,
    count,
    entitle,
    folded_names,
    message,
    new_figure,
    rows_height,
    style,
)
from lmablate.analysis.finals import MOST, arm_names, draw_finals, matched_note
from lmablate.results.arms import with_arms

NOTHING = "No finished runs to draw."


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs under the names that their study gave its arms; where there are others too, under what tells them apart."""
    return runs if "arm" in runs and runs["arm"].notna().all() else with_arms(runs)


def comparison(runs: pd.DataFrame, history: pd.DataFrame | None = None, title: str = "") -> Figure:
    """Loss curves on the left, final validation loss by arm and seed on the right; frames as from load_runs and
    load_history. One above the other where names are long; without a history the final losses stand alone."""
    if runs.empty:
        return message(NOTHING)
    runs = _named(runs)
    styles = arm_styles(runs["arm"])
    with style():
        rows = 0.26 * min(MOST, max(4, len(styles)))
        stacked = max(map(len, styles)) > 36  # long names would squeeze the panels side by side
        figure = new_figure(height=3.3 + rows + (3.4 if stacked else 0))
        if history is None or not history["run_id"].isin(runs["run_id"]).any():
            draw_finals(figure.subplots(), runs, styles)
        else:
            shape = (
                {"nrows": 2, "height_ratios": (3.8, 1.4 + rows)} if stacked else {"ncols": 2, "width_ratios": (1.15, 1)}
            )
            left, right = figure.subplots(**shape)
            draw_curves(left, runs, history, styles)
            draw_finals(right, runs, styles)
        entitle(figure, title, matched_note(runs))
    return figure


def loss_curves(runs: pd.DataFrame, history: pd.DataFrame, title: str = "") -> Figure:
    """Validation loss (and, thin, training loss) of every run against training tokens, with a legend of arms."""
    if runs.empty or not history["run_id"].isin(runs["run_id"]).any():
        return message(NOTHING if runs.empty else "No training records to draw.")
    runs = _named(runs)
    styles = arm_styles(runs["arm"])
    with style():
        figure = new_figure(height=max(4.4, 1.6 + 0.21 * min(MOST, len(styles))))
        axes = figure.subplots()
        draw_curves(axes, runs, history, styles)
        handles = [_sample(styles[arm], name) for arm, name in list(arm_names(runs).items())[:MOST]]
        figure.legend(handles=handles, loc="outside right center", labelspacing=0.55, handlelength=2.6)
        entitle(figure, title, matched_note(runs))
    return figure


def final_losses(runs: pd.DataFrame, title: str = "") -> Figure:
    """Final validation loss by arm: every seed a point, the mean a bar, best arm on top, diverged runs at the edge."""
    if runs.empty:
        return message(NOTHING)
    runs = _named(runs)
    styles = arm_styles(runs["arm"])
    with style():
        figure = new_figure(height=1.5 + rows_height(folded_names(arm_names(runs).values())[:MOST]))
        draw_finals(figure.subplots(), runs, styles)
        entitle(figure, title, matched_note(runs))
    return figure


def draw_curves(axes: Axes, runs: pd.DataFrame, history: pd.DataFrame, styles: dict[str, Arm]) -> None:
    """Every run's losses. The axis starts where training has left the initial loss, which would squash the rest; a
    diverged run ends in a cross at the top; an inset magnifies the end of training."""
    shown = history[history["run_id"].isin(runs["run_id"])]
    bottom, top = _loss_limits(runs, shown)
    for run, records in _by_run(runs, shown):
        train = records.dropna(subset="train_loss")
        axes.plot(train["tokens"], train["train_loss"], color=styles[run["arm"]].color, lw=0.7, alpha=0.3, zorder=2)
        _draw_validation(axes, records, styles[run["arm"]])
        if run["status"] == "diverged":
            place = [records["tokens"].max()], [top]
            axes.plot(*place, "X", ms=9, color=styles[run["arm"]].color, mec=PAPER, mew=0.8, clip_on=False, zorder=5)
    axes.set_ylim(bottom, top)
    axes.set_xlim(0, 1.02 * shown["tokens"].max() or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    axes.set(title="Loss", xlabel="training tokens", ylabel="loss (nats per token)")
    key = [_sample(Arm(INK, "-", "o"), "validation"), Line2D([], [], color=INK, lw=0.7, alpha=0.5, label="training")]
    if (runs["status"] == "diverged").any():
        key.append(Line2D([], [], color=INK, marker="X", ms=8, mec=PAPER, linestyle="none", label="diverged"))
    axes.legend(handles=key, loc="lower left", handlelength=1.8)
    _draw_end(axes, runs, shown, styles)


def _draw_validation(axes: Axes, records: pd.DataFrame, look: Arm) -> None:
    val = records.dropna(subset="val_loss")
    marker = look.marker if len(val) <= 20 else None
    axes.plot(
        val["tokens"], val["val_loss"], color=look.color, linestyle=look.line, lw=1.4, alpha=0.9, zorder=3,
        marker=marker, ms=3.6, mec=PAPER, mew=0.5,
    )  # fmt: skip


def _draw_end(axes: Axes, runs: pd.DataFrame, history: pd.DataFrame, styles: dict[str, Arm]) -> None:
    """The last third of the validation curves, magnified, in the corner that falling losses leave empty; nothing where
    that corner is in use or there is little to tell apart."""
    finished = runs[runs["status"] == "completed"]
    losses = history[history["run_id"].isin(finished["run_id"]) & history["val_loss"].notna()]
    done = losses["tokens"] / history["tokens"].max()
    bottom, top = axes.get_ylim()
    crowded = (losses.loc[done >= 0.38, "val_loss"] > bottom + 0.4 * (top - bottom)).any()
    if len(finished) < 2 or losses.loc[done >= 0.64, "tokens"].nunique() < 3 or crowded:
        return
    axes.add_patch(Rectangle((0.37, 0.4), 0.63, 0.59, transform=axes.transAxes, color=PAPER, lw=0, zorder=1.5))
    inset = axes.inset_axes((0.49, 0.48, 0.49, 0.44))
    for run, records in _by_run(finished, losses[done >= 0.64]):
        _draw_validation(inset, records, styles[run["arm"]])
    inset.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    inset.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
    inset.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    inset.tick_params(labelsize=8)
    inset.set_title("validation, the last third", fontsize=8.5, fontweight="normal", color=MUTED, pad=3)


def _sample(look: Arm, label: str) -> Line2D:
    """A line for a legend."""
    return Line2D(
        [],
        [],
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        lw=1.4,
        ms=4.5,
        mec=PAPER,
        mew=0.5,
        label=label,
    )


def _by_run(runs: pd.DataFrame, history: pd.DataFrame) -> Iterator[tuple[dict[Hashable, Any], pd.DataFrame]]:
    """Every run that has records, with them."""
    records = dict(tuple(history.groupby("run_id")))
    return ((run, records[run["run_id"]]) for run in runs.to_dict("records") if run["run_id"] in records)


def _loss_limits(runs: pd.DataFrame, history: pd.DataFrame) -> tuple[float, float]:
    """Bottom and top of the loss axis, nats per token: from the first evaluation past a tenth of the training down to
    the lowest loss; all of it where a run has fewer than four evaluations."""
    finished = set(runs.loc[runs["status"] == "completed", "run_id"])
    shown = history[history["run_id"].isin(finished)] if finished else history
    losses = shown[["val_loss", "train_loss"]]
    late = shown["tokens"] >= 0.1 * shown["tokens"].max()
    few = shown.groupby("run_id")["val_loss"].count().min() < 4
    high = losses.max(axis=None) if few or not finished else shown.loc[late, "val_loss"].max()
    low = losses[late].min(axis=None) if finished else losses.min(axis=None)
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    pad = max(0.04 * (high - low), 1e-3)
    return low - pad, high + pad
