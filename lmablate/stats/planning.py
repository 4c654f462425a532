"""Sample sizes: how many pairs a test needs. Effects and margins are in sd of a paired difference."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

MOST = 1000  # pairs; a plan beyond that is None


def paired_sd(run_sd: float, correlation: float) -> float:
    """Return the sd of a difference of two runs with `run_sd` each: run_sd * sqrt(2 (1 - correlation))."""
    return run_sd * math.sqrt(2 * (1 - correlation))


def power(effect: float, n: int, alpha: float = 0.05, *, df: int | None = None) -> float:
    """Return the power of the two-sided paired t test at `n` pairs, from the noncentral t.

    `df` replaces n - 1 for a pooled variance."""
    from scipy import stats

    df = n - 1 if df is None else df
    if df < 1:
        return 0.0
    bound, shift = stats.t.ppf(1 - alpha / 2, df), abs(effect) * math.sqrt(n)
    high = float(stats.nct.sf(bound, df, shift))
    low = float(stats.nct.cdf(-bound, df, shift)) if shift < 5 else 0.0
    return 1.0 if math.isnan(high) else high + (0.0 if math.isnan(low) else low)


def tost_power(margin: float, n: int, alpha: float = 0.05, *, effect: float = 0.0) -> float:
    """Return the probability that two one-sided t tests show equivalence within `margin` if the true difference is `effect`.

    Given the estimated sd s, the mean must lie within margin - t s / sqrt(n). This is averaged over s, where (n - 1) s^2 is
    chi-squared with n - 1 degrees of freedom (Owen 1965)."""
    from scipy import stats

    if n < 2:
        return 0.0
    s = _spreads(n)
    room = margin - stats.t.ppf(1 - alpha, n - 1) * s / math.sqrt(n)
    root = math.sqrt(n)
    inside = stats.norm.cdf((room - effect) * root) - stats.norm.cdf((-room - effect) * root)
    return float(np.mean(np.where(room > 0, inside, 0.0)))


@lru_cache(maxsize=256)
def _spreads(n: int) -> np.ndarray:
    """Return equally likely values of the sd estimated from `n` draws of sd 1."""
    from scipy import stats

    quantiles = (np.arange(4000) + 0.5) / 4000
    return np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))


def pairs_needed(effect: float, alpha: float = 0.05, wanted: float = 0.9) -> int | None:
    """Return the fewest pairs whose paired t test finds `effect` with probability `wanted`; None beyond MOST."""
    return _first(lambda n: power(effect, n, alpha) >= wanted)


def tost_pairs_needed(margin: float, alpha: float = 0.05, wanted: float = 0.9, *, effect: float = 0.0) -> int | None:
    """Return the fewest pairs that show equivalence within `margin` with probability `wanted`; None beyond MOST."""
    return _first(lambda n: tost_power(margin, n, alpha, effect=effect) >= wanted) if abs(effect) < margin else None


def detectable(n: int, alpha: float = 0.05, wanted: float = 0.9, *, df: int | None = None) -> float:
    """Return the smallest effect that `n` pairs find with probability `wanted`. Raises ValueError below two pairs."""
    from scipy import optimize

    high = 1.0
    while power(high, n, alpha, df=df) < wanted:
        high *= 2
        if high > 1e6:
            raise ValueError(f"{n} pairs detect nothing: a paired test needs two")
    return float(optimize.brentq(lambda effect: power(effect, n, alpha, df=df) - wanted, 0.0, high, xtol=1e-6))


def sd_factors(n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the factors from the sd of `n` values to the ends of its interval (chi-squared)."""
    from scipy import stats

    tail = (1 - level) / 2
    low, high = (math.sqrt((n - 1) / stats.chi2.ppf(p, n - 1)) for p in (1 - tail, tail))
    return low, high


def _first(enough) -> int | None:
    """Return the smallest n from 2 to MOST with a monotone enough(n), by doubling, then halving; None if there is none."""
    high = 2
    while not enough(high):
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
