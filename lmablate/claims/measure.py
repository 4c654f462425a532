"""Measure one hypothesis in one setting: effect, intervals and p values over its pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmablate.claims.claim import Hypothesis
from lmablate.claims.evidence import LR, Pair, Sample, SampleArm
from lmablate.claims.predicates import Row, clipped
from lmablate.diagnostics.spikes import LEAST
from lmablate.results.arms import is_missing
from lmablate.results.lost import is_lost
from lmablate.stats import counts, curves, estimates, sequential

# Spreads are pooled unless the test of their equality gives a p below EQUAL or the contrast looks wider than the rest. With
# the first condition alone a noisy arm of three gave 12 % false alarms instead of 5 (docs/results/simulation).
EQUAL, WIDER = 0.2, 0.5
_NAMES = {
    "val_loss": "a validation loss", "val_bpb": "bits per byte", "train_loss": "a training loss",
    "lr_sensitivity": "three learning rates in common, one of which trains",
    "loss_spike_score": "a spike score of every step (diagnostics=standard runtime.log_every=1)",
    "grad_norm_spike_score": "a spike score of every step (diagnostics=standard runtime.log_every=1)",
    "longer_error": "an accuracy at lengths above the training length (data.length_factors)",
    **{f"val_loss_{n}x": f"an evaluation at {n} times the training length (runtime.evaluate_lengths)" for n in (2, 4, 8, 16)},
}  # fmt: skip
FEW = 8  # pairs from which an arm's own variance is known well enough


class Looks(NamedTuple):
    """The planned interim looks of a study: the rule, and the numbers of pairs. Its evidence is judged by them."""

    kind: sequential.Kind
    planned: tuple[int, ...]


@dataclass
class Estimate:
    """The result of a measurement.

    `effect`, `values` (by pair), `interval` and `bootstrap` are in the hypothesis' unit: per cent of the arms it is measured
    against, or percentage points of diverged runs. `scale`: nats (or the metric's unit) in one per cent.

    `p`: of no difference, two-sided; `p_equal`: of equivalence within the margin; `p_not_higher`: of the one-sided test;
    `p_beyond`: that the effect lies beyond the margin, two-sided. `sd`: of one pair's value. `diverged`: lost runs by side,
    (count, runs), which `lost` calls by what became of them. `finished`: the effect over the pairs without one, and their
    number; None if there is no lost run, or no such pair.
    """

    effect: float | None = None
    values: list[float] = field(default_factory=list)
    interval: tuple[float, float] | None = None
    bootstrap: tuple[float, float] | None = None
    scale: float | None = None
    p: float = 1.0
    p_equal: float = 1.0
    p_not_higher: float = 1.0
    p_beyond: float = 1.0
    p_sign_flip: float | None = None
    sd: float | None = None
    correlation: float | None = None
    pooled: estimates.Pooled | None = None
    diverged: dict[str, tuple[int, int]] = field(default_factory=dict)
    lost: str = "diverged"
    finished: tuple[float, int] | None = None
    notes: list[str] = field(default_factory=list)


def measure(sample: Sample, test: Hypothesis, looks: Looks | None = None) -> Estimate:
    """Return the estimate of a hypothesis from its sample."""
    out = Estimate(diverged={"plus": _diverged(sample.arms, 1), "minus": _diverged(sample.arms, -1)})
    if any(is_lost(row) and row["status"] != "diverged" for row in _rows(sample.arms)):
        out.lost = "diverged or learned nothing"
    if test.metric == "diverged":
        return _fractions(out)
    pairs = sample.pairs
    losses = {arm.name: [_value(arm.rows[pair], test, sample.arms) for pair in pairs] for arm in sample.arms}
    lost = [i for i in range(len(pairs)) if any(values[i] is None for values in losses.values())]
    if lost:
        out.notes.append(f"{len(lost)} of {len(pairs)} pairs have a run without {_NAMES[test.metric]} and are left out")
    kept = [i for i in range(len(pairs)) if i not in lost]
    pairs = [pairs[i] for i in kept]
    table = {name: [float(values[i]) for i in kept] for name, values in losses.items()}  # type: ignore[arg-type]
    pairs, table = _one_a_draw(pairs, table, out.notes)
    if not pairs:
        return out
    weights = {arm.name: arm.weight for arm in sample.arms}
    lost_arms = [[is_lost(arm.rows[pair][0]) for arm in sample.arms] for pair in pairs]
    return _paired(out, table, weights, test, looks, lost_arms)


def _paired(
    out: Estimate,
    table: dict[str, list[float]],
    weights: dict[str, float],
    test: Hypothesis,
    looks: Looks | None,
    lost_arms: list[list[bool]],
) -> Estimate:
    """Return `out` with the estimates over pairs; `lost_arms` holds, for each pair, which of its runs are lost."""
    n = len(next(iter(table.values())))
    below = {name: weight for name, weight in weights.items() if weight < 0}
    base = [sum(-w * table[a][i] for a, w in below.items()) / -sum(below.values()) for i in range(n)]
    over = [sum(w * table[a][i] for a, w in weights.items() if w > 0) for i in range(n)]
    trained = [loss for loss, lost in zip(base, lost_arms, strict=True) if not any(lost)]
    out.scale = abs(statistics.fmean(trained or base)) / 100  # a lost run would stretch the per cent
    if not out.scale:
        out.notes.append("the arms it is measured against are at 0, so there are no per cent of them")
        return out
    out.values = [sum(w * table[a][i] for a, w in weights.items()) / out.scale for i in range(n)]
    out.effect = statistics.fmean(out.values)
    out.correlation = estimates.correlation(base, over)
    if n < 2:
        return out
    out.sd = statistics.stdev(out.values)
    diverged = any(count for count, _ in out.diverged.values())
    own: dict[str, Any] = {}
    pooled = estimates.pooled(table) if not diverged and n < FEW else None
    if pooled and pooled.p_equal >= EQUAL and estimates.wider(table, weights, pooled) >= WIDER:
        se = pooled.sd / out.scale * math.sqrt(sum(w * w for w in weights.values()) / n)
        out.pooled, own, out.sd = pooled, {"se": se, "df": pooled.df}, se * math.sqrt(n)
    out.interval = estimates.interval(out.values, **own)
    out.bootstrap = estimates.bootstrap_intervals([out.values])[0]
    out.p, out.p_sign_flip = estimates.t_test(out.values, **own), estimates.sign_flip(out.values)
    out.p_equal = estimates.tost(out.values, test.margin, **own)
    out.p_not_higher = estimates.not_above(out.values, test.margin, **own)
    beyond = min(estimates.not_above([s * v for v in out.values], -test.margin, **own) for s in (1, -1))
    out.p_beyond = min(1.0, 2 * beyond)
    if looks is not None:
        _with_looks(out, looks, n, test.margin)
    if diverged:
        told = [v for v, lost in zip(out.values, lost_arms, strict=True) if not all(lost)]
        _with_divergence(out, told, test.margin)
        finished = [v for v, lost in zip(out.values, lost_arms, strict=True) if not any(lost)]
        if finished and len(finished) < n:
            out.finished = statistics.fmean(finished), len(finished)
            out.notes.append(f"over the {len(finished)} pairs that finished the effect is {out.finished[0]:+.2f} %")
    return out


def _with_divergence(out: Estimate, told: list[float], margin: float) -> None:
    """Replace the p values by exact tests, since losses of lost runs are far from normal.

    The tests of the signs and of the fractions each get half the level. Nothing is equivalent to an arm that is lost more or
    less often. An arm that is not lost more often is not higher if most pairs lie below the margin, of those whose runs are not
    all lost (`told`)."""
    (a, n), (b, m) = out.diverged["plus"], out.diverged["minus"]
    assert out.p_sign_flip is not None and out.effect is not None
    p = min(1.0, 2 * min(out.p_sign_flip, counts.fisher((a, n), (b, m))))
    out.p = out.p_beyond = p
    out.p_equal = 1.0
    no_worse = a * m <= b * n and out.effect < margin
    out.p_not_higher = counts.signs_below(told, margin) if no_worse and told else 1.0
    counted = "the loss before training" if out.lost == "diverged" else "the loss they ended at"
    out.notes.append(f"{a} of {n} against {b} of {m} runs {out.lost}; they count with {counted}")


def _with_looks(out: Estimate, looks: Looks, n: int, margin: float) -> None:
    """Replace p values and interval by those that stay valid under interim looks, whatever stopped the study.

    The rules spend their alpha on a difference. The one-sided and equivalence tests at one of k looks are Bonferroni's, k times
    their p. For the anytime rule they follow from its interval, which covers the truth at all times together."""
    own = estimates.t_test(out.values)  # the rule assumes the arm's own variance
    out.pooled, out.sd = None, statistics.stdev(out.values)
    if looks.kind == "anytime":
        out.p = sequential.anytime_p(out.values)
        out.interval = sequential.anytime_interval(out.values)
        assert out.effect is not None
        ends = [min(1.0, 1 / sequential.e_value(out.values, end)) for end in (-margin, margin)]
        out.p_not_higher = ends[1] if out.effect < margin else 1.0
        out.p_equal = max(ends) if abs(out.effect) < margin else 1.0
        out.p_beyond = min(ends) if abs(out.effect) > margin else 1.0
    else:
        number = next((i for i, planned in enumerate(looks.planned) if planned >= n), len(looks.planned) - 1)
        out.p = sequential.repeated_p(looks.kind, looks.planned, number, own)
        level = sequential.boundaries(looks.kind, looks.planned)[number]
        out.interval = estimates.interval(out.values, 1 - level)
        k, t = len(looks.planned), estimates.not_above
        out.p_equal = min(1.0, k * estimates.tost(out.values, margin))
        out.p_not_higher = min(1.0, k * t(out.values, margin))
        out.p_beyond = min(1.0, 2 * k * min(t([s * v for v in out.values], -margin) for s in (1, -1)))
    out.notes.append(
        f"judged by the rule of its early looks ({looks.kind}, after {', '.join(map(str, looks.planned))} pairs)"
    )


def _fractions(out: Estimate) -> Estimate:
    (a, n), (b, m) = out.diverged["plus"], out.diverged["minus"]
    low_a, high_a = counts.clopper_pearson(a, n)
    low_b, high_b = counts.clopper_pearson(b, m)
    out.effect = 100 * (a / n - b / m)
    out.interval = (100 * (low_a - high_b), 100 * (high_a - low_b))
    out.values = [0.0] * min(n, m)
    out.p = out.p_beyond = counts.fisher((a, n), (b, m))
    return out


def _diverged(arms: Sequence[SampleArm], sign: int) -> tuple[int, int]:
    rows = _rows(arm for arm in arms if arm.weight * sign > 0)
    return sum(map(is_lost, rows)), len(rows)


def _rows(arms: Iterable[SampleArm]) -> list[Row]:
    return [row for arm in arms for own in arm.rows.values() for row in own]


def _value(rows: list[Row], test: Hypothesis, arms: Sequence[SampleArm]) -> float | None:
    """Return the metric of an arm at one pair, or None."""
    row = rows[0]
    if test.metric == "lr_sensitivity":
        return _sensitivity(rows, arms)
    if test.metric in ("loss_spike_score", "grad_norm_spike_score"):
        return _spike_score(row, test.metric)
    if test.metric == "longer_error":
        return _longer_error(row)
    if test.metric == "val_loss":
        return loss if math.isfinite(loss := clipped(row)) else None
    if row["status"] == "diverged" and test.metric == "train_loss":
        return None if is_missing(row["init_val_loss"]) else float(row["init_val_loss"])
    if row["status"] == "diverged" and test.metric == "val_bpb":
        tokens, size = row.get("data.val_tokens"), row.get("data.val_bytes")
        known = not (is_missing(tokens) or is_missing(size) or is_missing(row["init_val_loss"]))
        return float(row["init_val_loss"] * tokens / size / math.log(2)) if known else None
    value = row.get(test.metric)
    return None if is_missing(value) else float(value)  # type: ignore[arg-type]


def _longer_error(row: Row) -> float | None:
    """Return the share of wrong answers at lengths above the training length, as the mean over them.

    A run that diverged, or cannot read so far, answers nothing right."""
    factors: Any = row.get("data.length_factors")
    own: Any = row.get("model.context_length")
    if is_missing(factors) or is_missing(own):
        return None
    if "data.max_length" in row:  # these tasks count items, which fill half of the context
        own = own // 2 if is_missing(row["data.max_length"]) else row["data.max_length"]
    answers: list[Any] = [row.get(f"val_accuracy_by_length.{round(factor * own)}") for factor in factors if factor > 1]
    return 1 - statistics.fmean(0.0 if is_missing(share) else share for share in answers) if answers else None


def _spike_score(row: Row, column: str) -> float | None:
    """Return the per cent of steps with a spike (lmablate/diagnostics/spikes.py).

    None if records are means over several steps, which hide a spike."""
    steps = row["diverged_at_step"] if row["status"] == "diverged" else row["trainer.steps"]
    judged, score = row.get("diagnostics.spike_values"), row.get(f"diagnostics.{column}")
    known = not (is_missing(judged) or is_missing(score) or is_missing(steps))
    return float(score) if known and judged >= 0.9 * (steps - LEAST) else None  # type: ignore[arg-type]


def _sensitivity(rows: list[Row], arms: Sequence[SampleArm]) -> float | None:
    """Return the sensitivity over the learning rates that every arm has; None below three rates."""
    grids = [{row[LR] for own in arm.rows.values() for row in own} for arm in arms]
    common = set.intersection(*grids)
    mine = {row[LR]: row for row in rows if row[LR] in common}
    if len(common) < 3 or mine.keys() != common:
        return None
    if is_missing(rows[0]["init_val_loss"]):
        return None
    losses = {lr: None if row["status"] == "diverged" else row["val_loss"] for lr, row in mine.items()}
    finite = any(not is_missing(loss) for loss in losses.values())
    return curves.lr_sensitivity(losses, rows[0]["init_val_loss"]) if finite else None


def _one_a_draw(
    pairs: list[Pair], table: dict[str, list[float]], notes: list[str]
) -> tuple[list[Pair], dict[str, list[float]]]:
    """Average crossed seeds over the orders of each draw of the weights, since they are not independent pairs."""
    inits, orders = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(set(inits)) == len(pairs) or len(set(orders)) == len(pairs) or min(len(set(inits)), len(set(orders))) < 2:
        return pairs, table
    first = dict(reversed(list(zip(inits, pairs, strict=True))))
    means = {}
    for name, values in table.items():
        means[name] = [
            statistics.fmean(v for v, own in zip(values, inits, strict=True) if own == init) for init in first
        ]
    notes.append(f"{len(pairs)} crossed pairs of seeds count as {len(first)}: one for each draw of the weights")
    return list(first.values()), means
