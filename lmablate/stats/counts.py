"""Exact intervals and tests for counts of lost runs, and for the signs of values that are far from normal."""

from __future__ import annotations

from collections.abc import Sequence


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a fraction with `count` of `n` (Clopper and Pearson 1934).

    Raises ValueError if that is not a fraction."""
    from scipy import stats

    bounds = stats.binomtest(count, n).proportion_ci(level, "exact")
    return float(bounds.low), float(bounds.high)


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Return the two-sided p of Fisher's exact test that two fractions, each (count, n), are equal.

    It ignores pairing by seed, which makes it conservative."""
    from scipy import stats

    return float(stats.fisher_exact([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]).pvalue)


def signs_below(values: Sequence[float], margin: float) -> float:
    """Return the one-sided p of the exact sign test that the median of `values` is `margin` or more (Arbuthnott 1710).

    Only the sides count, so that one value far away decides nothing."""
    from scipy import stats

    below = sum(value < margin for value in values)
    return float(stats.binomtest(below, len(values), alternative="greater").pvalue)
