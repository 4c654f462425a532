"""Correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values (Holm 1979).

    Comparing them with alpha keeps the probability of any false rejection below alpha, whatever the dependence of the tests.
    """
    m = len(p_values)
    adjusted, worst = [0.0] * m, 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
