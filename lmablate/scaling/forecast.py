"""Forecast the loss difference of an arm at a rung that was not trained, from the rungs below, and count what held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmablate.core.errors import ConfigError
from lmablate.scaling.ladder import Ladder, lost_at
from lmablate.scaling.law import RESAMPLES, Law
from lmablate.scaling.multiples import difference_of, gain, line, pooled

LEVEL = 0.9


class Forecast(NamedTuple):
    """The prediction for one arm: the mean loss difference over `pairs` pairs, with its 90 % prediction interval, nats per
    token. `problem`: why there is none."""

    arm: str
    difference: float | None
    interval: tuple[float, float] | None
    pairs: int
    problem: str


def predict(
    law: Law, by_rung: Mapping[str, Sequence[float]], flops: Mapping[str, float], at: float, pairs: int
) -> Forecast:
    """Return the forecast at `at` FLOPs of paired differences `by_rung`, by a line of log multiples over log compute."""
    from scipy import stats

    fit = line(by_rung, flops, law)
    if fit is None:
        return Forecast("", None, None, pairs, "three rungs with pairs within the law are needed")
    x = np.array([1.0, math.log(at) - fit.middle])
    y = fit.level + fit.slope * x[1]
    at_y = at * math.exp(y)
    slope = float(gain(law, np.array([at_y]))[0])
    noise = fit.sd * float(law.loss({"flops": np.array([at])})[0])
    own = slope**2 * float(x @ fit.cov @ x) + noise**2 / pairs
    if len(fit.drawn) == len(law.draws) and len(law.draws) > 1:
        drawn = [
            difference_of(law, at, float(both @ x), theta) for both, theta in zip(fit.drawn, law.draws, strict=True)
        ]
        own += float(np.var(drawn))
    middle, half = difference_of(law, at, y), float(stats.t.ppf((1 + LEVEL) / 2, fit.df)) * math.sqrt(own)
    return Forecast("", middle, (middle - half, middle + half), pairs, "")


def forecasts(ladder: Ladder, at: float, pairs: int, *, resamples: int = RESAMPLES) -> list[Forecast]:
    """Return the forecast of each arm but the baseline at `at` FLOPs, from the fitted rungs."""
    try:
        law = ladder.law(resamples=resamples)
    except ConfigError as error:
        return [Forecast(arm, None, None, pairs, str(error)) for arm in ladder.arms[1:]]
    out = []
    flops = {rung: ladder.size(rung) for rung in ladder.fitted}
    for arm in ladder.arms[1:]:
        if lost := [rung for rung in ladder.lost(arm) if rung in ladder.fitted]:
            why = f"a run {lost_at(lost)}: nothing is fitted through that"
            out.append(Forecast(arm, None, None, pairs, why))
            continue
        runs = pooled(ladder, arm, ladder.baseline, ladder.fitted)
        out.append(predict(law, runs.by_rung, flops, at, pairs)._replace(arm=arm))
    return out


def outcomes(ladder: Ladder, record: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each recorded forecast (of the study's file) with what came out: `outcome` (nats per token) and `held`.

    Both are None while the rung is not trained, or where a run is lost."""
    out = []
    for entry in record:
        for one in entry["arms"]:
            lost = any(entry["rung"] in ladder.lost(arm) for arm in (one["arm"], ladder.baseline))
            found = [] if lost else ladder.differences(one["arm"], entry["rung"])
            mean = float(np.mean(found)) if found else None
            known = mean is not None and one["interval"] is not None
            held = one["interval"][0] <= mean <= one["interval"][1] if known else None
            blind = one.get("blind", entry.get("blind", False))  # once, an entry said it of all its arms
            extra = {"study": ladder.study, "rung": entry["rung"], "date": entry["date"], "blind": blind}
            problem = one["problem"] or (f"a run {lost_at([entry['rung']])}" if lost else "")
            out.append({**extra, **one, "problem": problem, "outcome": mean, "held": held})
    return out


def calibration(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many forecasts held, of those written before their rung was trained: `held`, `n`, `level`, and `words`."""
    counted = [row for row in rows if row["held"] is not None and row["blind"]]
    held = sum(row["held"] for row in counted)
    words = f"{held} of {len(counted)} forecasts held; of many, {LEVEL:.0%} should"
    return {"held": held, "n": len(counted), "level": LEVEL, "words": words if counted else "no forecast has come due"}
