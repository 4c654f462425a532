"""Compute multiples: the factor of compute that the baseline's law needs for the loss of an arm, per rung, and its trend.

At a rung of the compute C with the law L, a paired difference d (arm less baseline) is worth the log multiple
``y = ln(C' / C)`` with ``L(C') = L(C) + d``: above 0 the arm is worth more compute. Pairs carry the seeds' uncertainty, pooled
over the rungs of an arm; the resamples of the law carry the law's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmablate.scaling.ladder import Ladder, lost_at
from lmablate.scaling.law import Law
from lmablate.stats.multiplicity import holm

ALPHA = 0.05
Trend = Literal["grows", "steady", "fades", "turns", "not decided", "no effect shown"]
NO_TREND: tuple[None, None, Trend] = (None, None, "not decided")


class Multiple(NamedTuple):
    """The worth of an arm at one rung.

    `difference`, `low`, `high`: of the loss, nats per token, with its 95 % interval. `value`, `interval`: the compute multiple and
    its 95 % interval; None where no compute of the baseline reaches the loss by its law. `seconds`: the same in seconds of training,
    None unless every run had the machine alone. `p`: of no difference; `differs`: so after Holm over the rungs."""

    rung: str
    flops: float
    params: float
    n: int
    difference: float
    low: float
    high: float
    value: float | None
    interval: tuple[float, float] | None
    seconds: float | None
    p: float
    differs: bool


class Effect(NamedTuple):
    """The worth of an arm over a ladder.

    `slope`: the change of the log multiple for each factor e of compute, with its 95 % interval `slope_interval`; None below three
    rungs. `trend`: what that says. `misfit`: p of the test that the rungs lie on a line. `gone_at`: the rung from which on the
    interval holds 1, where the effect has faded within the rungs. `problem`: why nothing is fitted."""

    arm: str
    minus: str
    multiples: tuple[Multiple, ...]
    slope: float | None
    slope_interval: tuple[float, float] | None
    trend: Trend
    misfit: float | None
    gone_at: str | None
    problem: str


class Pooled(NamedTuple):
    """Paired differences by rung, nats per token. `sd`: their common spread, a share of the loss, with `df` degrees of freedom.

    `loss`: the mean loss by rung that the share is of."""

    by_rung: Mapping[str, Sequence[float]]
    loss: Mapping[str, float]
    sd: float
    df: int


def worth(
    law: Law, flops: np.ndarray | float, difference: np.ndarray | float, theta: np.ndarray | None = None
) -> np.ndarray:
    """Return the log of the compute multiple of a loss `difference` at `flops`; nan where the law never gets so low."""
    theta = law.theta if theta is None else theta
    floor, alpha = math.exp(theta[0]), theta[2]
    above = law.loss({"flops": np.atleast_1d(flops)}, theta) - floor
    with np.errstate(invalid="ignore", divide="ignore"):
        return -np.log1p(np.asarray(difference) / above) / alpha


def difference_of(law: Law, flops: float, y: float, theta: np.ndarray | None = None) -> float:
    """Return the loss difference that a log multiple `y` makes at `flops`: the inverse of `worth`."""
    theta = law.theta if theta is None else theta
    above = float(law.loss({"flops": np.array([flops])}, theta)[0]) - math.exp(theta[0])
    return above * math.expm1(-theta[2] * y)


def gain(law: Law, flops: np.ndarray, theta: np.ndarray | None = None) -> np.ndarray:
    """Return the fall of the loss for each factor e of compute, nats per token: ``alpha (L - E)``."""
    theta = law.theta if theta is None else theta
    return theta[2] * (law.loss({"flops": flops}, theta) - math.exp(theta[0]))


def pooled(ladder: Ladder, arm: str, minus: str, rungs: Sequence[str]) -> Pooled:
    """Return the paired differences of an arm and their spread, pooled over the rungs."""
    by_rung = {r: d for r in rungs if (d := ladder.differences(arm, r, minus=minus))}
    loss = {r: float(np.mean([run.loss for run in ladder.at(minus, r).values() if run.loss])) for r in by_rung}
    df = sum(len(d) - 1 for d in by_rung.values())
    squares = sum(float(np.sum((np.array(d) - np.mean(d)) ** 2)) / loss[r] ** 2 for r, d in by_rung.items())
    return Pooled(by_rung, loss, math.sqrt(squares / df) if df else math.nan, df)


def effect(ladder: Ladder, arm: str, law: Law, *, minus: str | None = None) -> Effect:
    """Return the worth of an arm at every rung, and its trend. `law`: of the arm it is measured against."""
    from scipy import stats

    minus = minus or ladder.baseline
    lost = [f"{one} {lost_at(where)}" for one in (arm, minus) if (where := ladder.lost(one))]
    if lost:
        return Effect(
            arm,
            minus,
            (),
            None,
            None,
            "not decided",
            None,
            None,
            f"{' and '.join(lost)}: nothing is fitted through that",
        )
    runs = pooled(ladder, arm, minus, ladder.rungs)
    if not runs.df:
        return Effect(arm, minus, (), None, None, "not decided", None, None, "no rung has two pairs of seeds")
    t = float(stats.t.ppf(1 - ALPHA / 2, runs.df))
    found = [_multiple(ladder, arm, minus, rung, d, runs, law, t) for rung, d in runs.by_rung.items()]
    ps = holm([one.p for one in found])
    multiples = tuple(one._replace(differs=p < ALPHA) for one, p in zip(found, ps, strict=True))
    fit = line(runs.by_rung, {one.rung: one.flops for one in multiples}, law)
    slope, interval, trend = _trend(multiples, fit) if fit else NO_TREND
    return Effect(arm, minus, multiples, slope, interval, trend, fit and fit.misfit, _gone(multiples), "")


def _multiple(
    ladder: Ladder, arm: str, minus: str, rung: str, d: Sequence[float], runs: Pooled, law: Law, t: float
) -> Multiple:
    from scipy import stats

    mean, se, flops = float(np.mean(d)), runs.sd * runs.loss[rung] / math.sqrt(len(d)), ladder.size(rung)
    y, low, high = (float(worth(law, flops, mean + k * t * se)[0]) for k in (0, 1, -1))
    drawn = np.array([worth(law, flops, mean, theta)[0] for theta in law.draws])
    known = math.isfinite(y)
    spread = t * float(np.std(drawn)) if known and len(drawn) and np.isfinite(drawn).all() else 0.0
    bounds = None
    if known:
        above = math.hypot(high - y, spread) if math.isfinite(high) else math.inf
        bounds = (math.exp(y - math.hypot(y - low, spread)), math.exp(min(y + above, 700.0)))
    own, base = ladder.at(arm, rung).values(), ladder.at(minus, rung).values()
    shift = math.log(np.mean([r.flops for r in base]) / np.mean([r.flops for r in own]))  # arms of unequal cost
    timed = [r.seconds for r in (*own, *base)]
    seconds = None
    if known and None not in timed:
        seconds = math.exp(y) * float(np.mean([r.seconds for r in base]) / np.mean([r.seconds for r in own]))
    scale = math.exp(shift)
    p = float(2 * stats.t.sf(abs(mean) / se, runs.df)) if se > 0 else float(mean == 0)
    return Multiple(
        rung, flops, ladder.size(rung, "params"), len(d), mean, mean - t * se, mean + t * se,
        math.exp(y) * scale if known else None, (bounds[0] * scale, bounds[1] * scale) if bounds else None, seconds, p, False,
    )  # fmt: skip


class Line(NamedTuple):
    """A weighted line ``y = level + slope (x - middle)`` through the log multiples of pairs.

    `cov`: covariance of level and slope by the seeds; `drawn`: both for each resample of the law; `sd`: of one paired difference
    about the line, a share of the loss; `df`: of it. `misfit`: p of the test that the rungs lie on a line. Where it is below 5 %,
    `sd` is that of the rungs about the line, not of their pairs, with two degrees of freedom less than rungs."""

    middle: float
    level: float
    slope: float
    cov: np.ndarray
    drawn: np.ndarray
    sd: float
    df: int
    misfit: float

    @property
    def total(self) -> np.ndarray:
        """Return the covariance of level and slope with the law's uncertainty."""
        return self.cov + (np.cov(self.drawn.T) if len(self.drawn) > 1 else 0.0)


def line(by_rung: Mapping[str, Sequence[float]], flops: Mapping[str, float], law: Law) -> Line | None:
    """Return the line through the log multiples over log compute; None below three rungs or beyond the law.

    A pair weighs as its loss tells multiples apart: the square of the law's `gain` at its rung, as a share of the loss, since
    so large is its noise."""
    rungs = [rung for rung, d in by_rung.items() for _ in d]
    x = np.log([flops[rung] for rung in rungs])
    d = np.array([one for own in by_rung.values() for one in own])
    if len(set(rungs)) < 3 or len(d) < 4:
        return None
    weights = (gain(law, np.exp(x)) / law.loss({"flops": np.exp(x)})) ** 2
    middle = float(np.average(x, weights=weights))
    design = np.stack([np.ones_like(x), x - middle], 1)

    def fitted(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = worth(law, np.exp(x), d, theta)
        inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
        return inverse @ (design.T @ (weights * y)), y

    best, y = fitted(law.theta)
    if not np.isfinite(y).all():
        return None
    sd, df, misfit = _scatter(rungs, y, design @ best, weights)
    cov = np.linalg.inv(design.T @ (weights[:, None] * design)) * sd**2
    drawn = np.array([fitted(theta)[0] for theta in law.draws]).reshape(-1, 2)
    return Line(middle, float(best[0]), float(best[1]), cov, drawn[np.isfinite(drawn).all(1)], sd, df, misfit)


def _scatter(rungs: Sequence[str], y: np.ndarray, line: np.ndarray, weights: np.ndarray) -> tuple[float, int, float]:
    """Return spread, degrees of freedom and `misfit` of a Line, by the F test of lack of fit (pairs of a rung are replicates)."""
    from scipy import stats

    groups = [np.array([one == rung for one in rungs]) for rung in dict.fromkeys(rungs)]
    about = float(np.sum(weights * (y - line) ** 2))
    within = sum(float(np.sum(weights[own] * (y[own] - y[own].mean()) ** 2)) for own in groups)
    between, rest = len(groups) - 2, len(y) - len(groups)
    lack = max(about - within, 0.0) / between
    misfit = float(stats.f.sf(lack / (within / rest), between, rest)) if rest and within else 1.0
    if misfit < ALPHA:
        return math.sqrt(lack), between, misfit
    return math.sqrt(about / (len(y) - 2)), len(y) - 2, misfit


def _trend(multiples: Sequence[Multiple], fit: Line) -> tuple[float, tuple[float, float], Trend]:
    """Return the slope with its 95 % interval, and what they say.

    grows, fades: the slope differs from 0, away from no effect or towards it; what is not seen at the last rung does not grow.
    steady: at both ends of the rungs the effect is shown to lie within half and one and a half times that in the middle (two
    one-sided tests). turns: the first and the last rung differ from 0 on two sides. Without a rung
    that differs from the baseline there is no effect to follow."""
    from scipy import stats

    cov = fit.total
    se = math.sqrt(cov[1, 1])
    half = float(stats.t.ppf(1 - ALPHA / 2, fit.df)) * se
    interval = (fit.slope - half, fit.slope + half)
    if not any(one.differs for one in multiples):
        return fit.slope, interval, "no effect shown"
    first, last = multiples[0], multiples[-1]
    if first.differs and last.differs and first.difference * last.difference < 0:
        return fit.slope, interval, "turns"
    if interval[0] > 0 or interval[1] < 0:
        if fit.slope * fit.level < 0:
            return fit.slope, interval, "fades"
        return fit.slope, interval, "not decided" if last.low <= 0 <= last.high else "grows"
    sign = math.copysign(1.0, fit.level)
    span = math.log(last.flops / first.flops)
    t = float(stats.t.ppf(1 - ALPHA, fit.df))
    for side in (span, -span):
        weights = np.array([1.0, side])
        shown = sign * (fit.level + side * fit.slope) - t * math.sqrt(weights @ cov @ weights)
        if shown <= 0:
            return fit.slope, interval, "not decided"
    return fit.slope, interval, "steady"


def _gone(multiples: Sequence[Multiple]) -> str | None:
    """Return the rung from which on the interval of the difference holds 0, if one below it differs."""
    holds = [one.low <= 0 <= one.high for one in multiples]
    first = next((i for i in range(len(holds)) if all(holds[i:])), None)
    return multiples[first].rung if first and any(one.differs for one in multiples[:first]) else None
