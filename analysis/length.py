"""Which positions hold beyond the training length? Loss against the length of the window, and by position in it.

The runs: ``lmablate train sweeps=length``; of other runs: ``lmablate evaluate RESULTS_DIR --lengths
1,2,4,8,16 --out DIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lmablate.analysis._studies import arm_of, published, stage
from lmablate.analysis._style import MUTED, PAPER, Arm, arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING
from lmablate.schema.sweeps import sweep_question
from lmablate.stats import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "length"
SLIDING = (0, (4, 1.6))  # the stroke of sliding windows
NEAR = 0.1  # nats: the axis of changes is linear up to here and logarithmic beyond
CHANGES = (-0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3, 10)


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """The evaluations of the study's runs, which load_runs notes the folders of, beside the published curves."""
    from lmablate.results.evaluations import load_evaluations, load_positions

    own = stage(runs, "evaluate")
    folders = runs.attrs.get("folders", [])
    lengths, positions = load_evaluations(folders), load_positions(folders)
    plain = [frame[(frame["text"] == "validation") & (frame["changes"] == "")] for frame in (lengths, positions)]
    return by_length(own, *plain)


def by_length(runs: pd.DataFrame, lengths: pd.DataFrame, positions: pd.DataFrame) -> Figure:
    """Change of the loss against the window's length over the training length, ours and as published on the same axes, and
    the loss by position in the longest windows; `lengths` and `positions` as from load_evaluations and load_positions."""
    if runs.empty:
        return message(NOTHING.format(SWEEP))
    named = runs.assign(arm=arm_of(runs)).reindex(columns=["run_id", "arm"]).drop_duplicates()
    lengths, positions = (_with_arms(frame, named) for frame in (lengths, positions))
    told = published(SWEEP)
    styles = arm_styles([*named["arm"], *lengths["arm"], *(series["arm"] for series in told)])
    with style():
        figure = new_figure(height=7.8)
        (left, right), (bottom, side) = figure.subplots(2, 2, height_ratios=(1.2, 1))
        _draw_lengths(left, changes(lengths), styles)
        _draw_published(right, told, styles)
        _same_axes(left, right)
        _draw_positions(bottom, positions, styles)
        _legend(side, {_name(arm, runs): look for arm, look in styles.items()})
        cited = " · ".join(dict.fromkeys(series["label"] for series in told))
        entitle(figure, sweep_question(SWEEP) or SWEEP, f"{_note(lengths)}\npublished: {cited}")
    return figure


def changes(lengths: pd.DataFrame) -> pd.DataFrame:
    """Each evaluation's nats per token over those of the same run at 1x the training length and non-overlapping windows: columns
    arm, times, sliding, stride, run_id and change. Runs without that evaluation are left out."""
    base = lengths[(lengths["times"] == 1) & ~lengths["sliding"].astype(bool)]
    keys = ["run_id", "text_fingerprint", "changes"]
    joined = lengths.merge(base[[*keys, "nats_per_token"]], on=keys, suffixes=("", "_base"))
    joined["change"] = joined["nats_per_token"] - joined["nats_per_token_base"]
    return joined[["arm", "times", "sliding", "stride", "run_id", "change"]]


def _with_arms(frame: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the arm of each run, and with what was changed after training in its name."""
    out = frame.merge(named, on="run_id")
    out["arm"] = [f"{arm}, {words}" if words else arm for arm, words in zip(out["arm"], out["changes"], strict=True)]
    return out


def _draw_lengths(axes: Axes, found: pd.DataFrame, styles: dict[str, Arm]) -> None:
    """The mean over the runs of an arm, and their 95 % interval (Student t); dashed for sliding windows."""
    axes.set_title("Ours: change of the loss against 1x,\nnats per token")
    if found.empty:
        axes.text(
            0.5,
            0.6,
            "no evaluation of these runs\nat other lengths yet",
            transform=axes.transAxes,
            ha="center",
            color=MUTED,
        )
    for (arm, sliding), rows in found.groupby(["arm", "sliding"]):
        look, by = styles[arm], rows.groupby("times")["change"]
        mean = by.mean()
        if sliding:
            axes.plot(mean.index, mean, linestyle=SLIDING, lw=1.2, color=look.color, zorder=2)
            continue
        axes.plot(
            mean.index, mean, "-", marker=look.marker, ms=5.5, mfc=PAPER, mew=1.3, lw=1.7, color=look.color, zorder=4
        )
        for times, values in by:
            if bounds := interval([float(value) for value in values]):
                axes.plot([times, times], bounds, color=look.color, lw=2.4, alpha=0.4, zorder=3)


def _draw_published(axes: Axes, told: list[dict[str, Any]], styles: dict[str, Arm]) -> None:
    for series in told:
        look = styles[series["arm"]]
        x, y = zip(*series["points"], strict=True)
        dashes = SLIDING if series.get("sliding") else "-"
        axes.plot(x, y, linestyle=dashes, marker=look.marker, ms=5, mfc=PAPER, mew=1.2, lw=1.5, color=look.color)
    axes.set_title("Press et al. 2021 (V2): 247M parameters,\ntrained at 512 tokens")


def _draw_positions(axes: Axes, positions: pd.DataFrame, styles: dict[str, Arm]) -> None:
    """Mean loss of each bin of positions over the windows of all lengths, which read a token at a position alike."""
    rows = positions[~positions["sliding"].astype(bool)]
    for arm, own in rows.groupby("arm"):
        own = own.assign(total=own["tokens"] * own["nats_per_token"])
        sums = own.groupby(["start", "end", "train_length"])[["total", "tokens"]].sum().reset_index()
        middle = (sums["start"] + sums["end"]) / 2 / sums["train_length"]
        axes.plot(middle, sums["total"] / sums["tokens"], "-", lw=1.5, color=styles[str(arm)].color)
    axes.axvline(1, color=MUTED, lw=1, ls=":", zorder=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set(title="Ours: loss by position in the window, nats per token", xlabel="position over training length")


def _same_axes(left: Axes, right: Axes) -> None:
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=NEAR, linscale=1.0)
    x = [min(left.get_xlim()[0], right.get_xlim()[0]), max(left.get_xlim()[1], right.get_xlim()[1])]
    means = [line for axes in (left, right) for line in axes.lines if line.get_alpha() is None]  # intervals may be cut
    data = [float(value) for line in means for value in line.get_ydata()]
    low, high = min(*data, -NEAR), max(*data, NEAR)
    for axes in (left, right):
        axes.axhline(0, color=MUTED, lw=1, zorder=1)
        axes.set(xlim=x, ylim=(low * 1.15, high * 1.3), xlabel="length of the window over training length")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32]))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(FixedLocator(CHANGES))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        axes.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: object) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _legend(axes: Axes, styles: dict[str, Arm]) -> None:
    """What colours and strokes mean, in the place of a panel."""
    axes.set_axis_off()
    common: dict[str, Any] = {"mfc": PAPER, "mew": 1.3, "lw": 1.7, "ms": 5.5}
    marks = [Line2D([], [], color=look.color, marker=look.marker, label=arm, **common) for arm, look in styles.items()]
    marks += [
        Line2D([], [], color=MUTED, lw=1.5, label="non-overlapping windows"),
        Line2D([], [], color=MUTED, lw=1.3, linestyle=SLIDING, label="sliding windows"),
    ]
    axes.legend(handles=marks, loc="upper left", ncols=1 if len(marks) < 13 else 2)


def _name(arm: str, runs: pd.DataFrame) -> str:
    """The arm, and how many of its runs diverged: these have no evaluation."""
    status = runs.loc[arm_of(runs) == arm, "status"]
    lost = int((status == "diverged").sum())
    return f"{arm} ({lost} of {len(status)} diverged)" if lost else arm


def _note(lengths: pd.DataFrame) -> str:
    if lengths.empty:
        return "lmablate evaluate RESULTS_DIR --lengths 1,2,4,8,16 evaluates finished runs"
    runs = lengths.groupby("arm")["run_id"].nunique()
    n = f"{runs.min()}" if runs.min() == runs.max() else f"{runs.min()} to {runs.max()}"
    strides = sorted(set(lengths.loc[lengths["sliding"], "stride"]))
    moves = f"\nsliding windows move on by {', '.join(map(str, strides))} tokens (published: 1)" if strides else ""
    trained = ", ".join(f"{value:,}" for value in sorted(set(lengths["train_length"])))
    return (
        f"ours: trained at {trained} tokens, {n} runs an arm, bars: 95 % interval (Student t); the same text at every length, "
        f"each token scored once{moves}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.length RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
