"""Fit a law as Hoffmann et al. 2022 (arXiv 2203.15556, approach 3) do, and bootstrap it over runs.

The objective is the Huber loss (delta 1e-3) of the log of the loss, over a grid of starts, each minimised by L-BFGS. Sizes are
centred in log space, so that scale and exponent of a term are nearly independent; the grid stands where the points are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from lmablate.scaling.forms import Columns, Form
from lmablate.scaling.points import Points, check_points

DELTA = 1e-3  # of the Huber loss, in log loss (Hoffmann et al. 2022, section D.2)
FLOORS = (0.05, 0.3, 0.6, 0.9)  # of the lowest loss, at a start
EXPONENTS = (0.05, 0.15, 0.35, 0.7, 1.2)
TRIED = 8  # starts that are minimised: the lowest of the grid
POLISHED = 2  # of their ends, the lowest
RESAMPLES = 400
LEVEL = 0.9
OUTLIER = 6.0  # standard deviations, beyond which a residual counts as an outlier and not as noise
REFITS = 60  # steps of the refits of the resamples, which end far nearer than their spread
SEED = 20_261
STEEPEST = 5.0  # largest exponent
LOWEST = 1e-3  # least share of the floor in the lowest loss


class Law(NamedTuple):
    """A fitted law. `theta` and `origin` are its coordinates (Form.log_loss); `values` its parameters by name.

    `residuals`: log of the loss less that of the law, with `df` degrees of freedom; `lowest`: the lowest loss of a point.
    `saturated`: as many sizes as parameters, so that only seeds are left over; its intervals take half the degrees
    (docs/decisions.md). `draws`: theta of each resample ``[resamples, parameters]``, empty without a bootstrap."""

    form: Form
    theta: np.ndarray
    origin: np.ndarray
    residuals: np.ndarray
    lowest: float
    df: float
    saturated: bool
    draws: np.ndarray

    @property
    def values(self) -> dict[str, float]:
        """Return the parameters by name."""
        return named(self.form, self.theta, self.origin)

    def loss(self, columns: Columns, theta: np.ndarray | None = None) -> np.ndarray:
        """Return the loss at sizes, nats per token; by a resample's `theta` if given."""
        logs = np.stack([np.log(np.atleast_1d(columns[c])) for c in self.form.columns]) - self.origin[:, None]
        return np.exp(self.form.log_loss(self.theta if theta is None else theta, logs)[0])

    def interval(self, of: Callable[[Mapping[str, float]], float], level: float = LEVEL) -> tuple[float, float]:
        """Return the interval of a function of the parameters, from the resamples."""
        drawn = [of(named(self.form, theta, self.origin)) for theta in self.draws]
        return expanded(np.array(drawn), self.df / 2 if self.saturated else self.df, level)

    def intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Return the interval of each parameter."""
        return {name: self.interval(itemgetter(name), level) for name in self.form.names}


def named(form: Form, theta: np.ndarray, origin: np.ndarray) -> dict[str, float]:
    """Return the parameters of `theta` by name, on the scale of the sizes themselves."""
    first, out = int(form.floor), {}
    if form.floor:
        out["E"] = math.exp(theta[0])
    for i, term in enumerate(form.terms):
        log_scale, exponent = theta[first + 2 * i] + theta[first + 2 * i + 1] * origin[i], theta[first + 2 * i + 1]
        power = log_scale if form.floor else log_scale / exponent
        out[term.scale] = math.exp(min(power, 700.0))  # a flat law without a floor has its scale beyond all numbers
    for i, term in enumerate(form.terms):
        out[term.exponent] = float(theta[first + 2 * i + 1])
    return {name: float(out[name]) for name in form.names}


@threadpool_limits.wrap(limits=1)  # the matrices are tiny: threads only wait for one another
def fit(points: Points, form: Form, *, resamples: int = RESAMPLES, seed: int = SEED) -> Law:
    """Return the law of `points`, with a bootstrap of `resamples`. Raises ConfigError for points that carry none."""
    check_points(points, form)
    logs = np.stack([np.log(points.columns[name]) for name in form.columns])
    origin = logs.mean(1)
    logs, target = logs - origin[:, None], np.log(points.loss)
    bounds = _bounds(form, target)
    found = [_minimised(form, start, logs, target, bounds) for start in _starts(form, logs, target)]
    ends = [
        _polished(form, theta, logs, target, bounds) for theta, _ in sorted(found, key=lambda pair: pair[1])[:POLISHED]
    ]
    theta = min(ends, key=lambda one: huber(form.log_loss(one, logs)[0] - target)[0])
    predicted, slopes = form.log_loss(theta, logs)
    residuals, df = target - predicted, freedom(slopes, points.group)
    saturated = len(np.unique(logs, axis=1).T) <= len(theta)
    law = Law(form, theta, origin, residuals, float(points.loss.min()), df, saturated, np.empty((0, len(theta))))
    if not resamples:
        return law
    others = redrawn(law, logs, points.group, resamples, seed)
    return law._replace(draws=refitted(form, theta, logs, others, bounds))


def huber(residuals: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the Huber loss of `residuals` over DELTA, and its derivative by each of them."""
    size = np.abs(residuals)
    inside = size <= DELTA
    value = np.where(inside, residuals**2 / (2 * DELTA), size - DELTA / 2).sum()
    return float(value), np.where(inside, residuals / DELTA, np.sign(residuals))


def _minimised(
    form: Form, start: np.ndarray, logs: np.ndarray, target: np.ndarray, bounds: list[tuple[float, float]]
) -> tuple[np.ndarray, float]:
    from scipy import optimize

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        predicted, slopes = form.log_loss(theta, logs)
        value, by_residual = huber(predicted - target)
        return value, slopes.T @ by_residual

    options: dict[str, Any] = {"maxiter": 60, "ftol": 1e-9, "gtol": 1e-6}
    done = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return done.x, float(done.fun)


def _polished(
    form: Form, start: np.ndarray, logs: np.ndarray, target: np.ndarray, bounds: list[tuple[float, float]]
) -> np.ndarray:
    """Return the minimum of the same objective near a `start`.

    So near the minimum SciPy's trust region is several times as fast as L-BFGS, and more exact."""
    from scipy import optimize

    done = optimize.least_squares(
        lambda theta: form.log_loss(theta, logs)[0] - target,
        start,
        lambda theta: form.log_loss(theta, logs)[1],
        bounds=tuple(np.array(bounds).T),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        ftol=1e-10,
        xtol=1e-10,
        gtol=1e-10,
    )
    return done.x


def freedom(slopes: np.ndarray, group: np.ndarray) -> float:
    """Return the degrees of freedom of the runs' residuals, by the leverages of the runs' means; at least 1.

    `slopes`: the derivatives of the law ``[points, parameters]``. Without groups it is points less parameters. Budgets of one run
    tell exponents of tokens, and leave the freedom between runs."""
    basis = np.linalg.qr(slopes)[0]
    runs = [np.flatnonzero(group == one) for one in np.unique(group)]
    taken = sum(float(np.sum(basis[run].sum(0) ** 2)) / len(run) for run in runs)
    return max(1.0, len(runs) - taken)


def refitted(
    form: Form, start: np.ndarray, logs: np.ndarray, targets: np.ndarray, bounds: list[tuple[float, float]]
) -> np.ndarray:
    """Return the minima ``[resamples, parameters]`` for `targets` ``[resamples, points]``, all refitted at once from `start`.

    Iteratively reweighted least squares with Levenberg's damping. SciPy's solvers take them one by one, which costs thirty times
    as much; a test holds both to the same minima."""
    low, high = np.array(bounds).T
    theta = np.tile(start, (len(targets), 1))
    damping = np.full(len(targets), 1e-2)
    predicted, slopes = form.log_loss(theta, logs)
    cost = _costs(targets - predicted)
    for _ in range(REFITS):
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(targets - predicted), 1e-12))
        weighted = slopes * weights[..., None]
        curvature = np.swapaxes(slopes, 1, 2) @ weighted
        pull = np.einsum("rnp,rn->rp", weighted, targets - predicted)
        scale = np.einsum("rpp->rp", curvature)
        curvature = curvature + (damping[:, None] * scale + 1e-12)[:, :, None] * np.eye(len(start))
        tried = np.clip(theta + np.linalg.solve(curvature, pull[..., None])[..., 0], low, high)
        there, their_slopes = form.log_loss(tried, logs)
        costs = _costs(targets - there)
        better = costs < cost
        theta[better], predicted[better], cost[better] = tried[better], there[better], costs[better]
        slopes[better] = their_slopes[better]
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e6)
    return theta


def _costs(residuals: np.ndarray) -> np.ndarray:
    """Return the Huber loss of each row, over DELTA."""
    size = np.abs(residuals)
    return np.where(size <= DELTA, size**2 / (2 * DELTA), size - DELTA / 2).sum(-1)


def _bounds(form: Form, target: np.ndarray) -> list[tuple[float, float]]:
    lowest = float(target.min())
    floor = [(lowest + math.log(LOWEST), lowest)] if form.floor else []
    return floor + [(-20.0 + lowest, 20.0 + lowest), (1e-3, STEEPEST)] * len(form.terms)


def _starts(form: Form, logs: np.ndarray, target: np.ndarray) -> list[np.ndarray]:
    """Return the lowest starts of the grid: floors, exponents, and shares of the terms in what is above the floor."""
    middle, lowest = math.exp(float(np.mean(target))), math.exp(float(target.min()))
    shares = [(1.0,)] if len(form.terms) == 1 else [(s, 1 - s) for s in (0.2, 0.5, 0.8)]
    found = []
    for floor in FLOORS if form.floor else (0.0,):
        for exponents in itertools.product(EXPONENTS, repeat=len(form.terms)):
            for share in shares:
                theta = [math.log(floor * lowest)] if form.floor else []
                for part, exponent in zip(share, exponents, strict=True):
                    theta += [math.log((middle - floor * lowest) * part), exponent]
                start = np.array(theta)
                found.append((huber(form.log_loss(start, logs)[0] - target)[0], start))
    return [start for _, start in sorted(found, key=lambda pair: pair[0])[:TRIED]]


def redrawn(law: Law, logs: np.ndarray, group: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return log losses ``[resamples, points]`` as other runs might have had them: normal noise around the law.

    It has the covariance of the residuals of a run, since budgets of one trunk belong together, and is widened by what the fit
    has taken out of the means of runs and of what is within them. Drawn residuals would not do: the Huber loss passes
    through some points, and draws of these zeros make intervals too narrow (Silverman and Young 1987, Biometrika 74)."""
    rng = np.random.default_rng(seed)
    runs = [np.flatnonzero(group == one) for one in np.unique(group)]
    sizes = np.sort(np.abs(law.residuals))[
        len(law.theta) :
    ]  # the fit passes through as many points as it has parameters
    limit = OUTLIER * 1.4826 * float(np.median(sizes))  # sd of normal residuals by their median size
    residuals = np.clip(law.residuals, -limit, limit) if limit else law.residuals
    shared = np.array([residuals[group == one].mean() for one in group])
    within, rest = len(group) - len(runs), len(group) - len(law.theta) - law.df
    wide = shared * math.sqrt(len(runs) / law.df)
    if within:
        wide += (residuals - shared) * math.sqrt(within / max(1.0, rest))
    out = np.tile(law.form.log_loss(law.theta, logs)[0], (resamples, 1))
    for size in {len(run) for run in runs}:
        alike = np.array([run for run in runs if len(run) == size])
        n = len(alike)
        noise = rng.standard_normal((resamples, n, n)) @ wide[alike] / math.sqrt(n)
        out[:, alike.ravel()] += noise.reshape(resamples, -1)
    return out


def expanded(drawn: np.ndarray, df: float, level: float) -> tuple[float, float]:
    """Return the expanded percentile interval (Hesterberg 2015, The American Statistician 69, section 5.3).

    Its percentiles are those at which the normal distribution has Student's quantiles, since few runs show little of their
    spread."""
    from scipy import stats

    tail = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, df)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
