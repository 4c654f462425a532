"""Interim looks at a study without raising its error rate.

Group-sequential: the looks are planned, and each spends a share of alpha (Lan and DeMets 1983). Anytime-valid: after any
pair, an e-process. Both test differences of finished pairs; a pair is never removed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from lmablate.stats.estimates import t_test

Kind = Literal["obrien_fleming", "pocock", "anytime"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The e-process bets on effects of this variance, in sd of a difference. Effects of 2 sd are usual between arms, and with 1
# no evidence of four pairs could reach 20.
SPREAD = 4.0
PATHS = 100_000
_GRID = 401


def spent(kind: Kind, share: float, alpha: float) -> float:
    """Return how much of `alpha` may be spent at a `share` of the planned pairs (Lan and DeMets 1983)."""
    from scipy import stats

    if kind == "obrien_fleming":
        return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(share)))  # alpha / 2 on each side
    return alpha * math.log(1 + (math.e - 1) * share)


@lru_cache(maxsize=4096)
def boundaries(kind: Kind, planned: tuple[int, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the two-sided p of Student's t at or below which each look stops, for looks after `planned` numbers of pairs.

    These are the levels of the normal statistic, used for t (the significance-level approach, Jennison and Turnbull 2000,
    section 4.4), times one factor, since for few pairs the levels alone exceed alpha (0.058 for 0.05). With the factor,
    simulated studies without a difference stop with probability alpha. Raises ValueError for numbers that do not rise.
    """
    if not planned or list(planned) != sorted(set(planned)) or planned[0] < 2:
        raise ValueError(f"looks after {planned} pairs: give rising numbers, the first at least 2")
    levels = np.array(normal_boundaries(kind, planned, alpha))
    factor = float(np.quantile((_null_p(planned) / levels).min(1), alpha))
    return tuple(float(level) for level in levels * min(1.0, factor))


@lru_cache(maxsize=8)
def _null_p(planned: tuple[int, ...]) -> np.ndarray:
    """Return p values (PATHS, looks) of studies without a difference."""
    from scipy import stats

    draws = np.random.default_rng(0).standard_normal((PATHS, planned[-1]))
    t = [draws[:, :n].mean(1) / draws[:, :n].std(1, ddof=1) * math.sqrt(n) for n in planned]
    return np.stack([2 * stats.t.sf(np.abs(x), n - 1) for x, n in zip(t, planned, strict=True)], axis=1)


@lru_cache(maxsize=4096)
def normal_boundaries(kind: Kind, planned: tuple[int, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the two-sided p at which each look stops, for a normal statistic of known variance.

    Computed by recursive integration of its joint distribution over the looks (Armitage, McPherson and Rowe 1969)."""
    from scipy import optimize, stats

    times = [n / planned[-1] for n in planned]
    levels, spent_alpha = [], 0.0
    grid = weight = density = np.zeros(0)
    for k, time in enumerate(times):
        due = spent(kind, time, alpha) - spent_alpha
        spent_alpha += due
        if k == 0:
            bound = float(stats.norm.isf(due / 2))
        else:
            step = math.sqrt(time - times[k - 1])
            mass = density * weight

            def crossing(z: float, step=step, mass=mass, grid=grid, time=time, due=due) -> float:
                edge = z * math.sqrt(time)
                return float((mass * (_tail((edge - grid) / step) + _tail((edge + grid) / step))).sum()) - due

            bound = float(optimize.brentq(crossing, 0.0, 12.0, xtol=1e-10))
        levels.append(float(2 * stats.norm.sf(bound)))
        edge = bound * math.sqrt(time)  # Brownian scale: z * sqrt(time)
        fresh = np.linspace(-edge, edge, _GRID)
        if k == 0:
            density = np.exp(-(fresh**2) / (2 * time)) / math.sqrt(2 * math.pi * time)
        else:
            kernel = np.exp(-((fresh[:, None] - grid[None, :]) ** 2) / (2 * step**2)) / (step * math.sqrt(2 * math.pi))
            density = kernel @ (density * weight)
        grid = fresh
        weight = np.full(_GRID, fresh[1] - fresh[0])
        weight[[0, -1]] /= 2
    return tuple(levels)


def _tail(x: np.ndarray) -> np.ndarray:
    from scipy import special

    return special.ndtr(-x)


def repeated_p(kind: Kind, planned: Sequence[int], number: int, p: float) -> float:
    """Return the smallest alpha at which the look `number` (from 0), with p value `p`, stops.

    It is below the study's alpha exactly if the boundary is crossed (Jennison and Turnbull 2000, section 9.2). Between 1e-4
    and 0.5, else 1."""
    low, high = 1e-4, 0.5  # outside these the simulated factor is too coarse
    if boundaries(kind, tuple(planned), high)[number] < p:
        return 1.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if boundaries(kind, tuple(planned), middle)[number] >= p else (middle, high)
    return high


def e_value(values: Sequence[float], null: float = 0.0) -> float:
    """Return the evidence that the mean of `values` is not `null`.

    If it is, the value exceeds 1 / alpha at any time with probability at most alpha. It is the scale-invariant t likelihood
    ratio with effects drawn from N(0, SPREAD) in sd units (Gonen et al. 2005; an e-process by Wang and Ramdas 2024,
    arXiv 2310.03722): with a = 1 + n SPREAD and v = n - 1, ``a^(-1/2) [(1 + t^2 / v) / (1 + t^2 / (v a))]^(n / 2)``.
    """
    n = len(values)
    if n < 2:
        return 1.0
    a, v = 1 + n * SPREAD, n - 1
    shift, sd = statistics.fmean(values) - null, statistics.stdev(values)
    if sd == 0:
        return a ** (-0.5) if shift == 0 else a ** (v / 2)
    t2 = n * (shift / sd) ** 2
    return a**-0.5 * math.exp(n / 2 * (math.log1p(t2 / v) - math.log1p(t2 / (v * a))))


def anytime_p(values: Sequence[float], null: float = 0.0) -> float:
    """Return 1 over the largest e-value so far, over the pairs in the order they were run. It is valid at any stopping time."""
    return min(1.0, 1 / max(e_value(values[:n], null) for n in range(1, len(values) + 1))) if values else 1.0


def anytime_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the means whose e-value is below 1 / alpha; None while that is unbounded.

    The interval covers the truth at all times together."""
    n = len(values)
    if n < 2:
        return None
    a, v = 1 + n * SPREAD, n - 1
    k = (a / (1 - level) ** 2) ** (1 / n)
    if k >= a:
        return None
    half = math.sqrt(v * (k - 1) / (1 - k / a)) * statistics.stdev(values) / math.sqrt(n)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def decide(
    kind: Kind,
    planned: Sequence[int],
    number: int,
    values: Sequence[float],
    alpha: float = 0.05,
    margin: float | None = None,
) -> str | None:
    """Return why to stop after these `values`, at look `number` of `planned`; None to continue.

    With a `margin`, the anytime rule also stops when its interval lies within it."""
    n = len(values)
    if kind != "anytime":
        p, bound = t_test(values), boundaries(kind, tuple(planned), alpha)[number]
        return f"p {p:.2g} is below {bound:.2g}, the level of this look" if p <= bound else None
    e = 1 / anytime_p(values)
    if e >= 1 / alpha:
        return f"the evidence for a difference, {e:.3g}, has passed {1 / alpha:g}"
    bounds = anytime_interval(values, 1 - alpha) if margin is not None else None
    if bounds and margin is not None and -margin < bounds[0] and bounds[1] < margin:
        return f"after {n} pairs the difference lies within {margin:g} either way"
    return None


def look_rule(
    kind: Kind, comparisons: int, alpha: float = 0.05, margin: float | None = None
) -> Callable[..., Mapping[str, str]]:
    """Return a stopping rule for a study's looks (sweeper/looks.py): every arm against the first.

    Alpha is shared among the planned `comparisons`. A pair with a run that diverged or failed has no difference. An arm with
    one is not stopped, so that its fraction of diverged runs is known from all planned pairs."""

    def rule(look) -> Mapping[str, str]:
        base = look.losses[look.baseline]
        others = [arm for arm in look.losses if arm != look.baseline]
        stopped: dict[str, str] = {}
        for arm in others:
            pairs = list(zip(base, look.losses[arm], strict=True))
            if any(a is None or b is None for a, b in pairs):
                continue
            why = decide(kind, look.planned, look.number, [b - a for a, b in pairs], alpha / comparisons, margin)
            stopped |= {arm: why} if why else {}
        return stopped

    return rule
