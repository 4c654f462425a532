"""Counts of runs that diverged: exact intervals and an exact test."""

from __future__ import annotations


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval for a fraction of which `count` of `n` were seen (Clopper and Pearson 1934). Raises ValueError where
    that is no fraction."""
    from scipy import stats

    found = stats.binomtest(count, n).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test that two fractions, each (count, n), are equal. Pairing by seed makes it cautious."""
    from scipy import stats

    return float(stats.fisher_exact([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]).pvalue)
