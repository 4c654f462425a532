"""Judge claims on a statistic over many runs: an area under a curve, a share of variance, a fitted line, a count of verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmablate.claims.claim import Claim, StatisticTest
from lmablate.claims.evidence import is_short
from lmablate.claims.predicates import Row, clipped, matches
from lmablate.claims.rows import Table
from lmablate.results.arms import is_missing
from lmablate.stats import counts
from lmablate.stats.noise import seed_noise

RESAMPLES, LEVEL = 2000, 0.95
EARLY_LOGIT = "diagnostics.early_max_attention_logit"
FEWEST = 4  # studies, claims or draws of the weights below which nothing is said
FEWEST_DIVERGED = 3
LEAST_CURVATURE = 1e-6  # nats; less is rounding
DECIDED = ("supported", "contradicted", "no difference")


class Statistic(NamedTuple):
    """A measured statistic with its 95 % interval, over `n` units (`of`: runs, studies, ...); without a value, `problem` says why."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
    of: str
    problem: str = ""


def early_logit_auc(rows: Sequence[Row]) -> Statistic:
    """Return the area under the ROC curve of the largest attention logit at 5 % of training as a predictor of divergence.

    It is the chance that a run that diverges later had the larger logit. Its interval is Newcombe's (2006, Statistics in Medicine 25,
    method 5), which stays sensible at an area of 1."""
    known = {row["run_id"]: row for row in rows if not is_missing(row.get(EARLY_LOGIT))}
    bad = [float(row[EARLY_LOGIT]) for row in known.values() if row["status"] == "diverged"]
    good = [float(row[EARLY_LOGIT]) for row in known.values() if row["status"] == "completed"]
    few = min(len(bad), len(good))
    if few < FEWEST_DIVERGED:
        least = f"at least {FEWEST_DIVERGED} that diverged after it and {FEWEST_DIVERGED} that did not"
        found = f"{len(bad)} and {len(good)} with a logit at 5 % of training (diagnostics=standard)"
        return Statistic(None, None, len(known), "runs", f"needs {least}, and has {found}")
    wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    area = wins / (len(bad) * len(good))
    return Statistic(area, area_interval(area, len(bad), len(good)), len(known), "runs")


def area_interval(area: float, m: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of an area under an ROC curve with `m` and `n` cases: all areas from which `area` is less than z errors away.

    The error is Hanley and McNeil's (1982) with both sizes replaced by their mean, as Newcombe proposes in method 5."""
    from scipy import optimize, stats

    z, middle = float(stats.norm.ppf(0.5 + level / 2)), (m + n) / 2 - 1

    def excess(at: float) -> float:
        spread = 1 + middle * ((1 - at) / (2 - at) + at / (1 + at))
        return (area - at) ** 2 - z * z * at * (1 - at) * spread / (m * n)

    edge = 1e-9  # the excess is 0 at areas of 0 and 1 themselves
    low = float(optimize.brentq(excess, edge, min(area, 1 - edge))) if area > edge and excess(edge) > 0 else 0.0
    high = (
        float(optimize.brentq(excess, max(area, edge), 1 - edge)) if area < 1 - edge and excess(1 - edge) > 0 else 1.0
    )
    return low, high


def rate_share(rows: Sequence[Row]) -> Statistic:
    """Return the share of the rate in the variance that rate and arm bring to the final loss, as the mean over studies.

    Each study's tuning runs are a two-way layout of arms by rates. The share is ``var(rates) / (var(rates) + var(arms))`` of the means
    over the other factor. The interval is a bootstrap over studies."""
    studies = sorted({str(row["sweep"]) for row in rows if not is_missing(row["sweep"])})
    shares = [s for name in studies if (s := _share([r for r in rows if r["sweep"] == name])) is not None]
    if len(shares) < FEWEST:
        problem = f"needs {FEWEST} studies that tuned at least two arms at three rates in common, and has {len(shares)}"
        return Statistic(None, None, len(shares), "studies", problem)
    return Statistic(statistics.fmean(shares), _resampled(shares, statistics.fmean), len(shares), "studies")


def _share(rows: Sequence[Row]) -> float | None:
    """Return the share of one study, None without a layout of at least two arms by three rates."""
    cells: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row.get("stage") == "tune" and row["status"] != "failed" and math.isfinite(clipped(row)):
            cells.setdefault(str(row["arm"]), {}).setdefault(row["optim.lr"], []).append(clipped(row))
    rates = sorted(set.intersection(*map(set, cells.values()))) if cells else []
    if len(cells) < 2 or len(rates) < 3:
        return None
    table = np.array([[statistics.fmean(own[rate]) for rate in rates] for own in cells.values()])
    of_arms, of_rates = float(table.mean(1).var()), float(table.mean(0).var())
    return of_rates / (of_rates + of_arms) if of_rates + of_arms else None


def best_depth_slope(rows: Sequence[Row]) -> Statistic:
    """Return how the best depth grows with the width: the slope of its logarithm over that of the width.

    A surface of second order in both logarithms is fitted to the final losses. At a width, the best depth is that beyond which a deeper
    model of the same size, ``depth x width^2``, has no lower loss. The interval is a bootstrap over draws of the weights."""
    points = [row for row in rows if row.get("stage") != "tune" and row["status"] == "completed"]
    draws = sorted({row["init_seed"] for row in points})
    grid = {(row["model.d_model"], row["model.n_layers"]) for row in points}
    widths, depths = ({one[i] for one in grid} for i in (0, 1))
    if len(widths) < 3 or len(depths) < 3 or len(draws) < FEWEST:
        has = f"{len(widths)} widths, {len(depths)} depths and {len(draws)} seeds"
        return Statistic(None, None, len(draws), "seeds", f"needs 3 widths, 3 depths and {FEWEST} seeds, and has {has}")
    own = {seed: [row for row in points if row["init_seed"] == seed] for seed in draws}
    slope = _slope(points)
    if slope is None:
        return Statistic(
            None,
            None,
            len(draws),
            "seeds",
            "the fitted surface has no best depth: deeper is better or worse throughout",
        )
    generator = np.random.default_rng(0)
    found = [_slope([row for s in generator.choice(draws, len(draws)) for row in own[s]]) for _ in range(RESAMPLES)]
    # A draw whose surface has no best depth may have any slope: it counts on both sides.
    low = [-math.inf if one is None else one for one in found]
    high = [math.inf if one is None else one for one in found]
    ends = (float(np.quantile(low, (1 - LEVEL) / 2)), float(np.quantile(high, (1 + LEVEL) / 2)))
    return Statistic(slope, ends, len(draws), "seeds")


def _slope(rows: Sequence[Row]) -> float | None:
    w = np.log([row["model.d_model"] for row in rows])
    d = np.log([row["model.n_layers"] for row in rows])
    design = np.stack([np.ones_like(w), w, d, w * w, w * d, d * d], axis=1)
    _, _, _, ww, wd, dd = np.linalg.lstsq(design, np.array([row["val_loss"] for row in rows]), rcond=None)[0]
    # Along equal size the width falls by half a step of the depth: loss' = dL/dd - dL/dw / 2, and its own slope there
    curvature = 2 * dd - wd + ww / 2
    turn = 2 * dd - wd / 2
    return float((ww - wd) / turn) if curvature > LEAST_CURVATURE and turn else None


def seed_spread(rows: Sequence[Row]) -> Statistic:
    """Return the standard deviation of the final loss over seeds, in per cent of the loss, pooled over arms.

    Of each arm it is that of a run with both seeds drawn anew (stats/noise.py). Arms share their seeds, so that they add no degrees of
    freedom to the chi-squared interval: these are the draws of one arm less one, of a grid those of the seed with fewer draws."""
    import pandas as pd
    from scipy import stats

    done = [row for row in rows if row.get("stage") != "tune" and row["status"] == "completed"]
    shares: list[float] = []
    degrees: list[int] = []
    for arm in sorted({(str(row["sweep"]), str(row["arm"])) for row in done}):
        own = [row for row in done if (str(row["sweep"]), str(row["arm"])) == arm]
        keys = ("status", "numerics", "run_id", "val_loss", "init_seed", "data_seed")
        noise = seed_noise(pd.DataFrame([{key: row[key] for key in keys} for row in own]))
        if noise.total is not None:
            shares.append(100 * noise.total / statistics.fmean(row["val_loss"] for row in own))
            degrees.append(min(len({row[key] for row in own}) for key in ("init_seed", "data_seed")) - 1)
    if not shares:
        return Statistic(None, None, 0, "arms", "needs an arm with several draws of the weights and orders of the data")
    value, free = math.sqrt(statistics.fmean(share**2 for share in shares)), min(degrees)
    least, most = (float(stats.chi2.ppf(q, free)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Statistic(value, (value * math.sqrt(free / most), value * math.sqrt(free / least)), len(shares), "arms")


def survival(verdicts: Sequence[Mapping[str, Any]], known: Mapping[str, Claim]) -> Statistic:
    """Return the share of decided claims that one design is better for the loss which came out as claimed, with its exact interval.

    Claims of no difference and of the method do not count. A claim that several studies judged counts with its own sweep's verdict."""
    found: dict[str, bool] = {}
    for row in sorted(verdicts, key=lambda one: one["study"] != known[one["id"]].sweep):
        claim = known[row["id"]]
        one_sided = all(
            test.direction in ("lower", "higher") and test.metric.startswith("val_") for test in claim.tests
        )
        if (
            claim.tests
            and one_sided
            and claim.group not in APART
            and row["verdict"] in DECIDED
            and not row["short_run"]
        ):
            found.setdefault(claim.id, row["verdict"] == "supported")
    if len(found) < FEWEST:
        problem = f"needs {FEWEST} decided claims that a design lowers the loss, and has {len(found)}"
        return Statistic(None, None, len(found), "claims", problem)
    count = sum(found.values())
    return Statistic(count / len(found), counts.clopper_pearson(count, len(found)), len(found), "claims")


APART = ("Controls", "Scaling and method")
OF_RUNS: dict[str, Callable[[Sequence[Row]], Statistic]] = {
    "early_logit_auc": early_logit_auc,
    "rate_share": rate_share,
    "best_depth_slope": best_depth_slope,
    "seed_spread": seed_spread,
}
OVER_STUDIES = ("rate_share", "survival")  # of a whole report
UNITS = {
    "early_logit_auc": "area under the curve",
    "rate_share": "share",
    "survival": "share",
    "best_depth_slope": "slope",
    "seed_spread": "per cent of the loss",
}


def _resampled(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of `values`."""
    generator = np.random.default_rng(0)
    found = [of(list(generator.choice(values, len(values)))) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def statistic_row(
    test: StatisticTest, table: Table, verdicts: Sequence[Mapping[str, Any]], known: Mapping[str, Claim]
) -> Row:
    """Return a test of a statistic with the keys that tests of contrasts have: supported where its interval lies within the claimed
    range, contradicted where it lies outside."""
    rows = [row for row in table.rows if matches(row, test.where or {})]
    found = survival(verdicts, known) if test.statistic == "survival" else OF_RUNS[test.statistic](rows)
    range_words = f"{test.low:g} to {test.high:g}"
    if found.value is None or found.interval is None:
        verdict, reason = "not decided", found.problem
    else:
        low, high = found.interval
        if test.low <= low and high <= test.high:
            verdict, place = "supported", "inside"
        elif high < test.low or low > test.high:
            verdict, place = "contradicted", "outside"
        else:
            verdict, place = "not decided", "not wholly inside"
        reason = f"{found.value:.3g} ({low:.3g} to {high:.3g}, {found.n} {found.of}) is {place} {range_words}"
    used = [row for row in rows if row.get("stage") == "tune"] if test.statistic == "rate_share" else rows
    lengths = [row["tokens_per_param"] for row in used if not is_missing(row.get("tokens_per_param"))]
    length = round(float(min(lengths)), 2) if lengths and test.statistic != "survival" else None
    return {
        "says": test.says, "where": {}, "metric": test.statistic, "direction": "within", "margin": None, "unit": UNITS[test.statistic],
        "plus": [], "minus": [], "verdict": verdict, "reason": reason, "notes": [], "more_seeds": None,
        "tokens_per_param": length, "short_run": is_short(length), "effect": found.value,
        "interval_95": list(found.interval) if found.interval else None, "bootstrap_95": None, "effect_in_units": found.value, "values": [],
        "sd": None, "n": found.n, "correlation": None, "p": None, "p_beyond": None, "p_sign_flip": None, "p_claim": None,
        "p_holm": None, "p_claim_holm": None, "family": None, "pooled": None, "diverged": {}, "finished": None, "unpaired": 0,
        "sweeps": sorted({str(row["sweep"]) for row in rows if not is_missing(row["sweep"])}) if found.value is not None else [],
        "runs": {"plus": [], "minus": []},
    }  # fmt: skip
