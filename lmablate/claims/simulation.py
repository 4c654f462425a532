"""Test the pipeline on simulated results with a known truth: frames as from load_runs, through claims to verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmablate.claims.claim import Claim
from lmablate.claims.verdict import judge
from lmablate.core.console import progress
from lmablate.stats import estimates, sequential
from lmablate.stats.counts import clopper_pearson
from lmablate.stats.planning import power, tost_power

if TYPE_CHECKING:
    import pandas as pd

LOSS = 4.0  # nats per token of the baseline; one per cent of it is 0.04
PERCENT = LOSS / 100
AXES = ["norm", "activation"]
ARMS = ("rms", "layer", "none")
DECIDED = ("supported", "contradicted")


class Truth(NamedTuple):
    """The truth of one simulated study.

    `effects`: each arm's mean final loss minus the first arm's, in sd of a paired difference. `sd`: that sd in per cent of the
    loss. `correlation`: of two arms that share a seed. `diverge`: each arm's probability to diverge."""

    effects: Sequence[float] = (0.0, 0.0)
    sd: float = 0.25
    correlation: float = 0.5
    diverge: Sequence[float] = (0.0, 0.0)


class Rate(NamedTuple):
    """A frequency with its exact 95 % interval, and its expected value."""

    what: str
    setting: str
    hits: int
    n: int
    rate: float
    low: float
    high: float
    expected: float | None


def study(truth: Truth, seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return one simulated study: arms of the axis `norm`, each with the same `seeds`."""
    import pandas as pd

    run_sd = truth.sd * PERCENT / np.sqrt(2 * (1 - truth.correlation))
    shared = rng.standard_normal(seeds) * np.sqrt(truth.correlation)
    rows = []
    for i, effect in enumerate(truth.effects):
        own = rng.standard_normal(seeds) * np.sqrt(1 - truth.correlation)
        losses = LOSS + effect * truth.sd * PERCENT + run_sd * (shared + own)
        lost = rng.random(seeds) < (truth.diverge[i] if i < len(truth.diverge) else 0.0)
        rows += [_row(ARMS[i], seed, None if lost[seed] else losses[seed]) for seed in range(seeds)]
    frame = pd.DataFrame(rows)
    frame.attrs["axes"] = AXES
    return frame


def _row(norm: str, seed: int, loss: float | None) -> dict[str, Any]:
    return {
        "run_id": f"{norm}{seed}", "status": "diverged" if loss is None else "completed", "norm": norm, "activation": "swiglu",
        "init_seed": seed, "data_seed": seed, "numerics": "cpu fp32 eager", "sweep": None, "science_version": 1, "n_params": 1_000_000,
        "init_val_loss": 7.6, "val_loss": loss, "optim.lr": 3e-3, "model.d_ff": 344, "model.d_model": 128,
    }  # fmt: skip


def claim(name: str, direction: str, margin: float, *, arm: str = "layer", seeds: int = 2) -> Claim:
    """Return a claim about `arm` minus rms."""
    test = {"says": name, "plus": {"norm": arm}, "minus": {"norm": "rms"}, "metric": "val_loss", "direction": direction}
    about = dict.fromkeys(("group", "statement", "expected", "smallest_scale", "design"), name)
    entry: dict[str, Any] = {"id": name, "priority": 1, "published": [], "sweep": None, "minimum_seeds": seeds, **about}
    return Claim.model_validate({**entry, "tests": [{**test, "margin": margin}]})


def verdicts(
    truth: Truth,
    seeds: int,
    claims: Mapping[str, Claim],
    sets: int,
    seed: int,
    studies: Sequence[Mapping[str, Any]] = (),
) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield the verdicts, by claim, on `sets` simulated studies of the same truth."""
    rng = np.random.default_rng(seed)
    for _ in progress(range(sets), "made-up studies judged"):
        yield {row["id"]: row for row in judge(study(truth, seeds, rng), claims=claims, studies=studies)}


def rate(what: str, setting: str, hits: Sequence[bool], expected: float | None) -> Rate:
    """Return the rate of `hits`, with its exact interval."""
    count, n = int(sum(hits)), len(hits)
    return Rate(what, setting, count, n, count / n, *clopper_pearson(count, n), expected)


def false_positives(sets: int, seeds: Sequence[int] = (4, 5, 6, 8, 12), margin: float = 0.01) -> list[Rate]:
    """Return how often A/A studies claim a difference. The margin is too small for anything else to be shown."""
    claims = {"a": claim("a", "lower", margin)}
    out = []
    for n in seeds:
        results = verdicts(Truth(), n, claims, sets, seed=n)
        hits = [one["a"]["verdict"] in DECIDED for one in results]
        out.append(rate("A/A: a difference is claimed", f"{n} pairs", hits, 0.05))
    return out


def powers(sets: int, table: Mapping[float, int]) -> list[Rate]:
    """Return how often A/B studies find a difference, in sd, with the number of pairs that `table` gives it."""
    claims = {"b": claim("b", "higher", 0.01)}
    out = []
    for effect, n in table.items():
        results = verdicts(Truth((0.0, effect)), n, claims, sets, seed=round(100 * effect))
        hits = [one["b"]["verdict"] == "supported" for one in results]
        out.append(rate("A/B: the difference is found", f"{effect:g} sd, {n} pairs", hits, power(effect, n)))
    return out


def equivalences(sets: int, table: Mapping[float, int]) -> list[Rate]:
    """Return TOST's rates for equal arms, and for arms that differ by just the margin, which must not be called equal."""
    out = []
    for margin, n in table.items():
        truth = Truth()
        claims = {"e": claim("e", "equal", margin * truth.sd)}
        for effect, what, expected in (
            (0.0, "equal arms are shown to be equal", tost_power(margin, n)),
            (margin, "arms that differ by the margin are called equal", None),
        ):
            results = verdicts(
                truth._replace(effects=(0.0, effect)), n, claims, sets, seed=round(100 * margin) + bool(effect)
            )
            hits = [one["e"]["verdict"] == "supported" for one in results]
            out.append(rate(f"TOST: {what}", f"margin {margin:g} sd, {n} pairs", hits, expected or 0.05))
    return out


def families(sets: int, size: int = 10, n: int = 6) -> list[Rate]:
    """Return Holm's error rates: for `size` true nulls in one report, and for nulls next to a large effect.

    Any null may be refuted in at most 5 % of reports."""
    setting = f"{size} claims, {n} pairs"
    nulls, plain = [], []
    for rows in _reports(sets, size, n, 0.0, 1):
        nulls.append(any(row["verdict"] in DECIDED for row in rows))
        plain.append(any(row["tests"][0]["p"] < 0.05 for row in rows))
    neighbours, effects = [], []
    for rows in _reports(sets, size, n, -6.0, 2):
        neighbours.append(any(row["verdict"] in DECIDED for row in rows[1:]))
        effects.append(rows[0]["verdict"] in DECIDED)
    return [
        rate("Holm: any of ten nulls is refuted", setting, nulls, 0.05),
        rate("without Holm: any of ten nulls is refuted", setting, plain, 1 - 0.95**size),
        rate("Holm: any of nine nulls is refuted beside an effect", setting, neighbours, 0.05),
        rate("Holm: the effect of 6 sd is found", setting, effects, None),
    ]


def _reports(sets: int, size: int, n: int, effect: float, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Yield verdicts on `size` claims of one report, each on its own study; the first has the `effect`, in sd."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    claims = {}
    for i in range(size):
        one = claim(f"c{i}", "lower", 0.01)
        test = one.tests[0].model_copy(update={"where": {"model.n_layers": i}})
        claims[one.id] = one.model_copy(update={"tests": [test]})
    for _ in progress(range(sets), "made-up studies judged"):
        studies = [study(Truth((0.0, 0.0 if i else effect)), n, rng) for i in range(size)]
        frames = [frame.assign(**{"model.n_layers": i}) for i, frame in enumerate(studies)]
        joined = pd.concat(frames, ignore_index=True)
        joined.attrs["axes"] = AXES
        yield judge(joined, claims=claims)


def looks(sets: int, planned: tuple[int, ...] = (4, 6, 8, 10, 12), effect: float = 1.5) -> list[Rate]:
    """Return error rate, power and mean number of pairs of interim looks, also without a stopping rule."""
    rng = np.random.default_rng(7)
    nulls, effects = rng.standard_normal((sets, planned[-1])), effect + rng.standard_normal((sets, planned[-1]))
    setting = f"looks after {', '.join(map(str, planned))} pairs"

    def stops(values: np.ndarray, stop: Callable[[int, list[float]], bool]) -> list[int]:
        out = []
        for row in values:
            seen = (n for i, n in enumerate(planned) if stop(i, [float(v) for v in row[:n]]))
            out.append(next(seen, 0))
        return out

    out = []
    rules: dict[str, Callable[[int, list[float]], bool]] = {
        kind: lambda i, values, kind=kind: sequential.decide(kind, planned, i, values) is not None  # type: ignore[misc]
        for kind in sequential.KINDS
    }
    rules["looking without a rule"] = lambda i, values: estimates.t_test(values) < 0.05
    for name, stop in rules.items():
        expected = None if name == "looking without a rule" else 0.05
        out.append(rate(f"{name}: false positives", setting, [n > 0 for n in stops(nulls, stop)], expected))
        taken = stops(effects, stop)
        mean = float(np.mean([n or planned[-1] for n in taken]))
        label = f"{effect:g} sd, {mean:.1f} of {planned[-1]} pairs on average"
        out.append(rate(f"{name}: power", label, [n > 0 for n in taken], None))
    return out


def pooling(sets: int, n: int = 4) -> list[Rate]:
    """Return the error rates of three arms with pooled variance, for equal spreads and for one wider arm.

    The claimed arm spreads two or three times as wide, which Levene's test on so few pairs often misses."""
    test = {"says": "p", "plus": {"norm": "layer"}, "minus": {"norm": ["rms", "none"]}, "metric": "val_loss"}
    base = claim("p", "lower", 0.01)
    claims = {
        "p": Claim.model_validate({**base.model_dump(), "tests": [{**test, "direction": "lower", "margin": 0.01}]})
    }
    out = []
    for noisy, what in ((1.0, "equal spreads"), (2.0, "one arm twice as wide"), (3.0, "one arm three times as wide")):
        rng, hits = np.random.default_rng(13), []
        for _ in progress(range(sets), "made-up studies judged"):
            frame = study(Truth((0.0, 0.0, 0.0)), n, rng)
            arm = frame["norm"] == "layer"
            frame.loc[arm, "val_loss"] = LOSS + noisy * (frame.loc[arm, "val_loss"] - LOSS)
            row = judge(frame, claims=claims)[0]
            hits.append(row["verdict"] in DECIDED)
        out.append(rate("pooled variance, A/A/A: a difference is claimed", f"{n} pairs, {what}", hits, 0.05))
    return out


def judged_looks(sets: int, planned: tuple[int, ...] = (4, 6, 8)) -> list[Rate]:
    """Return the error rate of A/A studies that stop at the deciding look and are judged from their rows."""
    claims, out = {"s": claim("s", "lower", 0.01)}, []
    for kind in sequential.KINDS:
        record = {
            "sweep": "made_up",
            "arms": {"rms": {}, "layer": {}},
            "looks": {"planned": list(planned), "rule": kind},
        }
        rng, hits = np.random.default_rng(17), []
        for _ in progress(range(sets), "made-up studies judged"):
            frame = study(Truth(), planned[-1], rng).assign(sweep="made_up")
            losses = frame.pivot_table(index="init_seed", columns="norm", values="val_loss")
            values = list(losses["layer"] - losses["rms"])
            n = next((n for i, n in enumerate(planned) if sequential.decide(kind, planned, i, values[:n])), planned[-1])
            row = judge(frame[frame["init_seed"] < n], claims=claims, studies=[record])[0]
            hits.append(row["verdict"] in DECIDED)
        label = f"looks after {', '.join(map(str, planned))} pairs"
        out.append(rate(f"A/A, stopped and judged by {kind}: a difference is claimed", label, hits, 0.05))
    return out


def divergences(sets: int, n: int = 6) -> list[Rate]:
    """Return the rates with diverging runs. No pair may be dropped.

    Cases: equally often in both arms, which is no difference; in an arm whose finished runs are better, which must not be
    called better for it; in one arm alone; and equally often where one arm is higher by just the margin."""
    claims = {"d": claim("d", "higher", 0.01)}
    out = []
    for truth, what, hit, expected in (
        (Truth(diverge=(0.25, 0.25)), "as often in both arms: a difference is claimed", DECIDED, 0.05),
        (Truth((0.0, -3.0), diverge=(0.0, 0.5)), "of half the runs: the arm is claimed to be better", ("contradicted",), 0.05),
        (Truth(diverge=(0.0, 0.9)), "in one arm alone, found", ("supported",), None),
    ):  # fmt: skip
        rows = [one["d"] for one in verdicts(truth, n, claims, sets, seed=11)]
        short = [row for row in rows if row["tests"][0]["n"] != n]
        if short:
            raise RuntimeError(f"{len(short)} verdicts dropped a pair with a diverged run")
        hits = [row["verdict"] in hit for row in rows]
        chances = " and ".join(f"{chance:g}" for chance in truth.diverge)
        out.append(rate(f"divergence {what}", f"{n} pairs, chances {chances}", hits, expected))
    at_margin, claims = Truth((0.0, 4.0), diverge=(0.5, 0.5)), {"d": claim("d", "not_higher", 1.0)}
    hits = [one["d"]["verdict"] == "supported" for one in verdicts(at_margin, 2 * n, claims, sets, seed=12)]
    what = "in both arms, one higher by the margin: called no worse"
    return [*out, rate(f"divergence {what}", f"{2 * n} pairs, chances 0.5 and 0.5", hits, 0.05)]
