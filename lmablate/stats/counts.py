"""Counts of runs that diverged: exact intervals and an exact test."""

from __future__ import annotations


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval for a fraction of which `count` of `n` were seen (Clopper and Pearson 1934)."""
    from scipy import stats

    if not 0 <= count <= n or n < 1:
        raise ValueError(f"{count} of {n} is no fraction")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(stats.beta.ppf(1 - tail, count + 1, n - count))
    return low, high


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test that two fractions, each (count, n), are equal. Pairing by seed makes it cautious."""
    from scipy import stats

    return float(stats.fisher_exact([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]).pvalue)
