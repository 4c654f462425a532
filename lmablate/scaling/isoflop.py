"""IsoFLOP parabolas (Hoffmann et al. 2022, arXiv 2203.15556, approach 2): the best size for each budget of compute.

At each budget a parabola of the loss over the log of the parameters has its minimum at N_opt, and N_opt ~ C^a over budgets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lmablate.core.errors import ConfigError
from lmablate.scaling.law import RESAMPLES, SEED, expanded
from lmablate.scaling.points import FEWEST, Points

SAME = 0.1  # budgets whose logs lie so close together are one: sizes of a budget cost nearly, not exactly, the same


class Budget(NamedTuple):
    """One budget of `flops` FLOPs: its best size `params` with the `loss` there, and where the parabola was read."""

    flops: float
    params: float
    loss: float
    sizes: int


class IsoFlop(NamedTuple):
    """`budgets` with their minima, `a` of N_opt ~ C^a with its 90 % interval, and `b` = 1 - a of D_opt ~ C^b."""

    budgets: tuple[Budget, ...]
    a: float
    interval: tuple[float, float]
    residuals: np.ndarray


def isoflop(points: Points, *, resamples: int = RESAMPLES, seed: int = SEED) -> IsoFlop:
    """Return the minima of the budgets and their exponent. Raises ConfigError where a parabola has no minimum among its sizes."""
    groups = _groups(points.columns["flops"])
    if len(groups) < FEWEST:
        raise ConfigError(f"{len(groups)} budgets of FLOPs: an exponent needs {FEWEST} or more; train more budgets")
    x, y = np.log(points.columns["params"]), points.loss
    centres = np.array([float(np.mean(np.log(points.columns["flops"][own]))) for own in groups])
    residuals = np.zeros_like(y)
    minima, budgets = [], []
    for centre, own in zip(centres, groups, strict=True):
        flops = math.exp(centre)
        if len(np.unique(x[own])) < FEWEST:
            raise ConfigError(f"{flops:.3g} FLOPs: a parabola needs {FEWEST} or more different params; add sizes there")
        vertex, low, fitted = _vertex(x[own], y[own])
        if not x[own].min() <= vertex <= x[own].max():
            raise ConfigError(
                f"{flops:.3g} FLOPs: the lowest loss lies outside the sizes tried, so that there is no minimum: add sizes, or leave "
                "the budget out"
            )
        residuals[own] = y[own] - fitted
        minima.append(vertex)
        budgets.append(Budget(flops, math.exp(vertex), low, len(np.unique(x[own]))))
    a = float(np.polyfit(centres, minima, 1)[0])
    df = max(1, len(y) - 3 * len(groups))
    drawn = _drawn(groups, x, y - residuals, residuals * math.sqrt(len(y) / df), centres, resamples, seed)
    return IsoFlop(tuple(budgets), a, expanded(drawn, df, 0.9), residuals)


def _groups(flops: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(flops)
    breaks = np.flatnonzero(np.diff(np.log(flops[order])) > SAME) + 1
    return list(np.split(order, breaks))


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return the place of the minimum of the parabola through the points, its loss, and the fitted losses; inf without one."""
    middle = x.mean()
    a, b, c = np.polyfit(x - middle, y, 2)
    vertex = middle - b / (2 * a) if a > 0 else math.inf
    return float(vertex), float(c - b * b / (4 * a)) if a > 0 else math.nan, np.polyval((a, b, c), x - middle)


def _drawn(
    groups: list[np.ndarray],
    x: np.ndarray,
    fitted: np.ndarray,
    residuals: np.ndarray,
    centres: np.ndarray,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """Return the exponent of each resample of the residuals; those whose parabola lost its minimum are left out."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(resamples):
        y = fitted + rng.choice(residuals, size=len(residuals)) * rng.choice((-1.0, 1.0), size=len(residuals))
        minima = np.array([_vertex(x[own], y[own])[0] for own in groups])
        if np.isfinite(minima).all():
            out.append(float(np.polyfit(centres, minima, 1)[0]))
    return np.array(out)
