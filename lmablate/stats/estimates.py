"""Estimates from paired differences: intervals, tests of a difference and of equivalence, variance pooled over arms.

`values` are differences between two arms, one for each pair of runs that share seeds, in any unit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

EXACT = 14  # pairs up to which all 2^n signs are tried
RESAMPLES = 10_000
TOGETHER = 64  # samples resampled at once, in about 50 MB
SEED = 20_260  # makes resampling repeatable


class Pooled(NamedTuple):
    """The spread of runs pooled over arms.

    `sd`: of one run after removing the effects of its seed and its arm. `df`: its degrees of freedom. `p_equal`: of the test that
    the arms' spreads are equal."""

    sd: float
    df: int
    p_equal: float


def interval(
    values: Sequence[float], level: float = 0.95, *, se: float | None = None, df: int | None = None
) -> tuple[float, float] | None:
    """Return Student's t interval for the mean of `values`; None for fewer than two.

    `se` and `df` replace the standard error of the mean and its degrees of freedom (a pooled variance)."""
    from scipy.special import stdtrit

    if (spread := _spread(values, se, df)) is None:
        return None
    half = float(stdtrit(spread[1], (1 + level) / 2)) * spread[0]
    mean = statistics.fmean(values)
    return mean - half, mean + half


def _spread(values: Sequence[float], se: float | None, df: int | None) -> tuple[float, int] | None:
    """Return the given standard error of the mean and its degrees of freedom, else those of `values`; None below two."""
    if se is not None and df is not None:
        return se, df
    return (statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1) if len(values) > 1 else None


def bootstrap_intervals(samples: Sequence[Sequence[float]], level: float = 0.95) -> list[tuple[float, float] | None]:
    """Return bias-corrected and accelerated bootstrap intervals of the means of `samples` (Efron 1987).

    None for a sample below three values. They are too narrow for few pairs: Student's interval decides, these show the effect
    of the normal assumption. Samples of one size use the same resampling indices, alone or together."""
    out: list[tuple[float, float] | None] = [None] * len(samples)
    by_size: dict[int, list[int]] = {}
    for i, values in enumerate(samples):
        if len(values) < 3:
            continue
        data = np.asarray(values, dtype=float)
        if np.ptp(data) <= 1e-12 * np.abs(data).max():
            out[i] = float(data[0]), float(data[0])
        else:
            by_size.setdefault(len(values), []).append(i)
    for indices in by_size.values():
        for first in range(0, len(indices), TOGETHER):
            batch = indices[first : first + TOGETHER]
            for i, bounds in zip(batch, _bca(np.array([samples[i] for i in batch], dtype=float), level), strict=True):
                out[i] = bounds
    return out


def _bca(data: np.ndarray, level: float) -> list[tuple[float, float]]:
    """Return the intervals of the rows of `data`, float64 ``[samples, n]``."""
    from scipy import stats

    bounds = stats.bootstrap(
        (data,),
        _mean,
        axis=-1,
        confidence_level=level,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(bounds.low, bounds.high, strict=True)]


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean along the last axis, summed in one order whatever the memory layout.

    Resamples that tie with the mean of the sample count half, and rounding would break the ties."""
    total = values[..., 0]
    for i in range(1, values.shape[-1]):
        total = total + values[..., i]
    return total / values.shape[-1]


def t_test(values: Sequence[float], null: float = 0.0, *, se: float | None = None, df: int | None = None) -> float:
    """Return the two-sided p of Student's test that the mean is `null`; 1 for fewer than two values."""
    from scipy.special import stdtr

    if (spread := _spread(values, se, df)) is None:
        return 1.0
    return float(2 * stdtr(spread[1], -abs(_ratio(statistics.fmean(values) - null, spread[0]))))


def sign_flip(values: Sequence[float]) -> float:
    """Return the two-sided p of the permutation test that flips the sign of each difference (Fisher 1935).

    It is exact up to EXACT pairs, else from RESAMPLES random flips plus the observed signs. It cannot fall below 2 / 2^n."""
    data = np.asarray(values, dtype=float)
    n = len(data)
    if not n:
        return 1.0
    if n <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        sums = np.abs(signs @ data)
    else:
        flips = np.random.default_rng(SEED).choice((-1.0, 1.0), size=(RESAMPLES, n))
        sums = np.append(np.abs(flips @ data), abs(data.sum()))
    return float(np.mean(sums >= abs(data.sum()) * (1 - 1e-12)))


def tost(values: Sequence[float], margin: float, *, se: float | None = None, df: int | None = None) -> float:
    """Return the p of "the mean lies outside (-margin, margin)": the larger of two one-sided t tests (Schuirmann 1987)."""
    below = not_above(values, margin, se=se, df=df)
    return max(below, not_above([-value for value in values], margin, se=se, df=df))


def not_above(values: Sequence[float], margin: float, *, se: float | None = None, df: int | None = None) -> float:
    """Return the one-sided p of "the mean is `margin` or more", which is small if the mean lies below."""
    from scipy.special import stdtr

    if (spread := _spread(values, se, df)) is None:
        return 1.0
    return float(stdtr(spread[1], _ratio(statistics.fmean(values) - margin, spread[0])))


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Pearson's correlation between two arms over their pairs; None below three pairs or without spread."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def pooled(arms: Mapping[str, Sequence[float]]) -> Pooled | None:
    """Return the spread of one run from all `arms` together, over the same pairs in the same order.

    Residuals of loss = pair + arm, with (arms - 1)(pairs - 1) degrees of freedom. The difference of two arms has the
    standard error sd * sqrt(2 / pairs). Equal spread is tested by Brown and Forsythe's form of Levene's test on the
    residuals. None below three arms or three pairs.
    """
    from scipy import stats

    table = np.array([list(values) for values in arms.values()], dtype=float)
    if table.ndim != 2 or min(table.shape) < 3:
        return None
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    if not rest.any():
        return None
    return Pooled(float(np.sqrt((rest**2).sum() / df)), df, float(stats.levene(*rest, center="median").pvalue))


def wider(arms: Mapping[str, Sequence[float]], weights: Mapping[str, float], pooled_spread: Pooled) -> float:
    """Return the one-sided p of the F test that the contrast of `arms` by `weights` spreads more than the rest.

    `pooled_spread` is that of all arms; the p is below 0.5 if the contrast looks wider. The sums of squares of the contrast and of
    the rest are independent, with n - 1 and (arms - 2)(n - 1) degrees of freedom. Levene's test on few pairs often misses one
    arm that spreads three times as wide; this test looks at the contrast itself.
    """
    from scipy import stats

    values = sum(weights[arm] * np.asarray(losses, dtype=float) for arm, losses in arms.items())
    n, total = len(next(iter(arms.values()))), pooled_spread.sd**2 * pooled_spread.df
    own = float(((values - np.mean(values)) ** 2).sum()) / sum(weight**2 for weight in weights.values())
    rest, df = max(total - own, 0.0), pooled_spread.df - (n - 1)
    return 0.0 if rest == 0 else float(stats.f.sf(own / (n - 1) / (rest / df), n - 1, df))


def _ratio(effect: float, se: float) -> float:
    """Return effect / se, also if all pairs agree to the bit."""
    if se > 0:
        return effect / se
    return math.copysign(math.inf, effect) if effect else 0.0
