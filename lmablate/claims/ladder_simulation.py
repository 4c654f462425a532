"""Test ladders on simulated studies with a known truth: frames as from load_runs, to multiples, trends and forecasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmablate.claims.simulation import Rate, rate
from lmablate.core.console import progress
from lmablate.scaling.forecast import forecasts
from lmablate.scaling.forms import FORMS
from lmablate.scaling.ladder import Ladder, ladders
from lmablate.scaling.law import fit
from lmablate.scaling.multiples import Effect, effect
from lmablate.scaling.points import Points

if TYPE_CHECKING:
    import pandas as pd

SMALLEST = 50_000  # parameters of the lowest rung; each next one has twice as many
TOKENS = 20  # per parameter
LAW = {"E": 1.9, "A": 60.0, "alpha": 0.14}  # of the loss over FLOPs: 3.8 to 3.1 nats from 0.05M to 0.8M parameters
BOTH = {"E": 1.9, "A": 50.0, "B": 150.0, "alpha": 0.35, "beta": 0.366}  # of the loss over parameters and tokens
BUDGETS = (5, 10, 20)  # tokens per parameter of the branches of one run
RESAMPLES = 60
ARM, BASE = "arm", "base"


class LadderTruth(NamedTuple):
    """The truth of one simulated ladder study.

    `multiples`: the compute multiple at the lowest and the highest rung, between which its log is a line over log compute. `sd`: of
    a paired difference, per cent of the loss. `rungs`: with the one held out."""

    multiples: tuple[float, float] = (1.0, 1.0)
    sd: float = 0.25
    correlation: float = 0.5
    rungs: int = 5
    seeds: int = 3


def study(truth: LadderTruth, rng: np.random.Generator) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows and the record of one simulated ladder study; the largest rung is held out."""
    import pandas as pd

    rows, uses = [], []
    params = SMALLEST * 2.0 ** np.arange(truth.rungs)
    share = np.linspace(0, 1, truth.rungs)
    worth = np.exp((1 - share) * np.log(truth.multiples[0]) + share * np.log(truth.multiples[1]))
    for name, n, times in zip(map(str, range(truth.rungs)), params, worth, strict=True):
        flops = 6 * n * TOKENS * n
        spread = truth.sd / 100 * law_loss(flops) / np.sqrt(2 * (1 - truth.correlation))
        common = np.sqrt(truth.correlation) * rng.standard_normal(truth.seeds)
        for arm, compute in ((BASE, flops), (ARM, flops * times)):
            noise = common + np.sqrt(1 - truth.correlation) * rng.standard_normal(truth.seeds)
            for seed, loss in enumerate(law_loss(compute) + spread * noise):
                run_id = f"{arm}{name}{seed}"
                rows.append({
                    "run_id": run_id, "status": "completed", "val_loss": float(loss), "tokens": TOKENS * n, "flops_per_token": 6 * n,
                    "n_params_non_embedding": n, "numerics": "cpu fp32 eager", "wall_seconds": flops / 1e10,
                })  # fmt: skip
                uses.append({
                    "run_id": run_id, "arm": f"{arm} at {name}", "stage": "evaluate", "of": arm, "rung": name,
                    "init_seed": seed, "data_seed": seed, "tokens": TOKENS * n, "whole": TOKENS * n,
                })  # fmt: skip
    rungs = [{"name": str(i), "held_out": i == truth.rungs - 1} for i in range(truth.rungs)]
    record = {"sweep": "made_up", "question": "", "ladder": {"arms": [BASE, ARM], "rungs": rungs}, "runs": uses}
    return pd.DataFrame(rows), record


def law_loss(flops: float) -> float:
    """Return the loss of the true law."""
    return LAW["E"] + LAW["A"] * float(flops) ** -LAW["alpha"]


class Outcome(NamedTuple):
    """The effect over all rungs of one made-up study, and whether its forecast held."""

    effect: Effect
    held: bool


def outcomes(truth: LadderTruth, sets: int, seed: int) -> Iterator[Outcome]:
    """Yield what the pipeline says of `sets` simulated studies of one truth."""
    rng = np.random.default_rng(seed)
    for _ in progress(range(sets), "made-up ladders judged"):
        (ladder,) = ladders(*_one(study(truth, rng)))
        yield Outcome(effect(ladder, ARM, ladder.law(held_out=True, resamples=RESAMPLES)), _held(ladder, truth))


def _one(made: tuple[pd.DataFrame, dict[str, Any]]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    return made[0], [made[1]]


def _held(ladder: Ladder, truth: LadderTruth) -> bool:
    (top,) = ladder.held_out
    (one,) = forecasts(ladder, ladder.size(top), truth.seeds, resamples=RESAMPLES)
    assert one.interval is not None, one.problem
    return one.interval[0] <= float(np.mean(ladder.differences(ARM, top))) <= one.interval[1]


TRUTHS = {
    "no effect": (LadderTruth(), None),
    "grows": (LadderTruth((1.1, 1.5)), "grows"),
    "steady": (LadderTruth((1.3, 1.3)), "steady"),
    "fades": (LadderTruth((1.5, 1.05)), "fades"),
}


def multiples(sets: int, truths: Sequence[str] = tuple(TRUTHS)) -> list[Rate]:
    """Return how often ladders claim what is not there, find the trend that is, and forecast the largest rung."""
    out = []
    for number, name in enumerate(truths):
        truth, trend = TRUTHS[name]
        found = list(outcomes(truth, sets, seed=number))
        low, high = truth.multiples
        setting = f"{name}: {low:g}x to {high:g}x, {truth.rungs} rungs, {truth.seeds} pairs"
        trends = [one.effect.trend for one in found]
        if trend is None:
            claimed = [any(m.differs for m in one.effect.multiples) for one in found]
            out.append(rate("ladder: a multiple other than 1 is claimed", setting, claimed, 0.05))
        else:
            out.append(rate("ladder: the trend is found", setting, [one == trend for one in trends], None))
            wrong = {"grows", "fades", "steady", "turns"} - {trend}
            out.append(rate("ladder: another trend is claimed", setting, [one in wrong for one in trends], None))
        out.append(rate("ladder: the 90 % forecast holds", setting, [one.held for one in found], 0.9))
    return out


def coverage(sets: int, form: str, rungs: Sequence[int] = (3, 4, 5), sd: float = 0.25, seeds: int = 3) -> list[Rate]:
    """Return how often the 90 % intervals of a law's parameters cover the truth; `sd`: of a run, per cent of the loss."""
    out = []
    truth = LAW if form == "compute" else BOTH
    made: Callable[..., Points] = _compute_points if form == "compute" else _both_points
    for n in rungs:
        rng = np.random.default_rng(100 * n)
        hits: dict[str, list[bool]] = {name: [] for name in FORMS[form].names}
        for i in progress(range(sets), "made-up laws fitted"):
            law = fit(made(n, seeds, sd / 100, rng), FORMS[form], resamples=2 * RESAMPLES, seed=i)
            for name, (low, high) in law.intervals().items():
                hits[name].append(low <= truth[name] <= high)
        setting = f"{form}, {n} rungs, {seeds} seeds"
        out += [rate(f"law: the 90 % interval of {name} covers", setting, own, 0.9) for name, own in hits.items()]
    return out


def _compute_points(rungs: int, seeds: int, sd: float, rng: np.random.Generator) -> Points:
    n = np.repeat(SMALLEST * 2.0 ** np.arange(rungs), seeds)
    flops = 6 * TOKENS * n**2
    loss = (LAW["E"] + LAW["A"] * flops ** -LAW["alpha"]) * np.exp(sd * rng.standard_normal(len(n)))
    return Points.of({"flops": list(flops)}, list(loss))


def _both_points(rungs: int, seeds: int, sd: float, rng: np.random.Generator) -> Points:
    """Budgets of one run share half of the variance of their noise."""
    n = np.repeat(SMALLEST * 2.0 ** np.arange(rungs), seeds * len(BUDGETS))
    tokens = n * np.tile(BUDGETS, rungs * seeds)
    noise = np.repeat(rng.standard_normal(rungs * seeds), len(BUDGETS)) + rng.standard_normal(len(n))
    loss = BOTH["E"] + BOTH["A"] * n ** -BOTH["alpha"] + BOTH["B"] * tokens ** -BOTH["beta"]
    columns = {"params": list(n), "tokens": list(tokens)}
    run = list(np.repeat(np.arange(rungs * seeds), len(BUDGETS)))
    return Points.of(columns, list(loss * np.exp(sd * noise / np.sqrt(2))), run)
