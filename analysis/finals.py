"""Final losses: one row an arm, one point a seed; and what a comparison rests on, in words."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lmablate.analysis._studies import with_lost
from lmablate.analysis._style import INK, MUTED, PAPER, STEPS, Arm, count, folded_names, percent, side_column
from lmablate.results.common_targets import OWN

MOST = 60  # arms that can be read one below the other


def arm_order(runs: pd.DataFrame) -> list[str]:
    """Arms by mean final loss, best first; those that never finished last."""
    means = runs.groupby("arm")["val_loss"].mean()
    return list(means.sort_values(na_position="last", kind="stable").index)


def arm_names(runs: pd.DataFrame) -> dict[str, str]:
    """Each arm's label, best arm first, with the number of its runs that were lost: nothing is dropped in silence."""
    return {arm: with_lost(arm, runs[runs["arm"] == arm]) for arm in arm_order(runs)}


def draw_finals(axes: Axes, runs: pd.DataFrame, styles: dict[str, Arm]) -> None:
    """One row an arm: seeds as open points, the mean as a bar and in figures, diverged runs as a cross at the edge."""
    every = arm_names(runs)
    names = dict(list(every.items())[:MOST])
    runs = runs[runs["arm"].isin(names)]
    diverged = bool((runs["status"] == "diverged").any())
    left, right = _limits(runs["val_loss"].dropna(), diverged)
    means = []
    for y, arm in enumerate(names):
        rows, look = runs[runs["arm"] == arm], styles[arm]
        values = rows["val_loss"].dropna()
        axes.plot([values.mean()], [y], "|", ms=17, mew=2.6, color=look.color, zorder=3)
        axes.plot(values, [y] * len(values), look.marker, ms=6, mfc=PAPER, mec=look.color, mew=1.3, zorder=4)
        if (rows["status"] == "diverged").any():
            axes.plot([right], [y], "X", ms=9, color=look.color, mec=PAPER, mew=0.8, clip_on=False, zorder=5)
        means.append((y, f"{values.mean():.4f}", INK) if len(values) else (y, "none", MUTED))
    side_column(axes, "mean", means)
    axes.set_yticks(range(len(names)), folded_names(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, min_n_ticks=3))
    if runs["val_loss"].isna().all():
        axes.set_xticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    left_out = f" (the best {MOST} of {len(every)} arms)" if len(every) > MOST else ""
    where = " of the second half of each window, which all objectives predict" if OWN in runs else ""
    axes.set(title=f"Final validation loss, each seed{left_out}", xlabel=f"nats per token{where} (lower is better)")
    _draw_references(axes, runs)


DEFINED = {
    "non-embedding parameters": "all but token and position tables and an untied head",
    "parameters": "every learned number once",
    "FLOPs": "matrix products of training, forward and backward",
}


def defined(text: str) -> str:
    """What the sizes that `text` speaks of count, in words; empty where it speaks of none."""
    rest, found = text, []
    for name, words in DEFINED.items():
        if name in rest:
            rest = rest.replace(name, "")
            found.append(f"{name}: {words}")
    return "  ·  ".join(found)


def matched_note(runs: pd.DataFrame) -> str:
    """What the comparison rests on: seeds, tokens and parameters of the arms, and losses known without training."""
    finished = runs[runs["status"] == "completed"]
    seeds = runs.groupby("arm").size()
    low, high = int(seeds.min()), int(seeds.max())
    parts = [f"{low} seed{'s' * (low > 1)} per arm" if low == high else f"{low} to {high} seeds per arm"]
    if len(finished):
        parts.append(_agreement(finished["tokens"], "training tokens per run"))
        parts.append(_agreement(finished["n_params"], "parameters") + f", {DEFINED['parameters']}")
    parts += [f"{name} reaches {value:.3f} nats per token" for name, value in _references(runs).items()]
    return "  ·  ".join(parts)


def _agreement(values: pd.Series, unit: str) -> str:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return f"{count(low)} {unit}"
    if high / low < 1.01:
        return f"{count(high)} {unit} (equal within {percent(high / low - 1)})"
    return f"{count(low)} to {count(high)} {unit} (unequal by {percent(high / low - 1)})"


def _limits(losses: pd.Series, diverged: bool) -> tuple[float, float]:
    low, high = (float(losses.min()), float(losses.max())) if len(losses) else (0.0, 1.0)
    pad = max(0.06 * (high - low), 0.001 * abs(high), 1e-4)
    return low - pad, high + pad * (2.5 if diverged else 1)


def _references(runs: pd.DataFrame) -> dict[str, float]:
    """Losses known without training, where all runs share them: nats per token."""
    known = {"a unigram model": "data.unigram_val_loss", "a perfect model": "data.entropy_floor"}
    values = {name: runs[column].dropna().unique() for name, column in known.items() if column in runs}
    return {name: float(found[0]) for name, found in values.items() if len(found) == 1}


def _draw_references(axes: Axes, runs: pd.DataFrame) -> None:
    """A line for a known loss, but only where it lies close enough not to squash the arms together."""
    left, right = axes.get_xlim()
    span = right - left
    for name, value in _references(runs).items():
        if not left - 0.3 * span < value < right + 0.3 * span:
            continue
        axes.axvline(value, color=MUTED, lw=1, linestyle=(0, (4, 3)), zorder=1)
        end = "right" if value > (left + right) / 2 else "left"
        axes.annotate(
            name, (value, 1), xycoords=("data", "axes fraction"), xytext=(-4 if end == "right" else 4, -1),
            textcoords="offset points", ha=end, va="top", fontsize=8.5, color=MUTED,
        )  # fmt: skip
        axes.set_xlim(min(axes.get_xlim()[0], value - 0.05 * span), max(axes.get_xlim()[1], value + 0.05 * span))
