"""Exact intervals and an exact test for counts of diverged runs."""

from __future__ import annotations


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
