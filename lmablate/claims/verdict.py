"""Verdicts: what finished runs say of each claim, at one error rate for the whole report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lmablate.arms import is_missing
from lmablate.claims.data import Claim, Hypothesis, load_claims
from lmablate.claims.evidence import Found, Sample, find
from lmablate.claims.matching import words
from lmablate.claims.measure import Estimate, Looks, measure
from lmablate.claims.rows import Table
from lmablate.stats.families import holm

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Verdict = Literal["supported", "contradicted", "no difference", "not decided", "not testable at this scale"]
# A claim of several tests, or in several settings, is as good as its worst.
GRAVITY: tuple[Verdict, ...] = (
    *("contradicted", "no difference", "not testable at this scale", "not decided", "supported"),
)
ALPHA = 0.05


class Judged(NamedTuple):
    """A hypothesis in one setting, before the family is corrected; `sample` is null where no runs could be compared."""

    claim: Claim
    test: Hypothesis
    sample: Sample | None
    estimate: Estimate
    problem: str


def judge(
    runs: pd.DataFrame,
    *,
    studies: Iterable[Mapping[str, Any]] = (),
    asked: Iterable[str] = (),
    claims: Mapping[str, Claim] | None = None,
    alpha: float = ALPHA,
) -> list[Row]:
    """The claims that `runs` (load_runs) touch, each with its verdict and the tests behind it; JSON values only.

    `studies`: contents of studies/<sweep>.json, for learning rates at an edge and early looks; claims that they name, or
    that `asked` names, are judged even without a run that bears on them. Holm's correction (1979) runs over all tests of
    a difference, and over all one-sided and equivalence tests, in this list.
    """
    studies = list(studies)
    known = load_claims() if claims is None else claims
    named = {*asked, *(name for study in studies for name in study.get("claims", ()))}
    looks = {study["sweep"]: found for study in studies if (found := _looks(study))}
    table = Table.of(runs)
    judged = [one for claim in known.values() for one in _measure(claim, table, claim.id in named, looks)]
    # What cannot be measured costs no other test anything.
    measured = [one for one in judged if one.estimate.effect is not None]
    p = holm([_p_against(one.test, one.estimate) for one in measured])
    q = holm([_p_claim(one.test, one.estimate) for one in measured])
    family = max(1, len(measured))
    rows: dict[str, list[Row]] = {}
    corrected = iter(zip(p, q, strict=True))
    for one in judged:
        ps = next(corrected) if one.estimate.effect is not None else None
        rows.setdefault(one.claim.id, []).append(_row(one, ps, family, studies, alpha))
    for claim in known.values():
        if claim.id in named and claim.untested:
            rows[claim.id] = []
    return [_claim_row(known[name], tests) for name, tests in rows.items()]


def _measure(claim: Claim, runs: Table, named: bool, looks: Mapping[str, Looks]) -> list[Judged]:
    found: list[tuple[Hypothesis, Found]] = [(test, find(runs, test)) for test in claim.tests]
    if not named and not any(f.samples for _, f in found):
        return []
    out = []
    for test, f in found:
        out += [
            Judged(claim, test, s, measure(s, test, next((looks[x] for x in s.sweeps if x in looks), None)), "")
            for s in f.samples
        ]
        if not f.samples:
            out.append(Judged(claim, test, None, Estimate(), f.problem))
    return out


def _looks(study: Mapping[str, Any]) -> Looks | None:
    asked = study.get("looks") or {}
    if not asked.get("planned"):
        return None
    return Looks(asked.get("rule") or "obrien_fleming", tuple(asked["planned"]))


def _p_against(test: Hypothesis, estimate: Estimate) -> float:
    """Of what a difference would show: that there is one, or where only one beyond the margin counts, that it lies there."""
    return estimate.p_beyond if test.direction in ("equal", "not_higher") else estimate.p


def _p_claim(test: Hypothesis, estimate: Estimate) -> float:
    return estimate.p_not_higher if test.direction == "not_higher" else estimate.p_equal


def decide(test: Hypothesis, e: Estimate, p: float, q: float, alpha: float = ALPHA) -> tuple[Verdict, str]:
    """The verdict on a measured hypothesis from its corrected p values, with the reason: `p` of no difference (for `equal`
    and `not_higher`: of none beyond the margin), `q` of the one-sided test for `not_higher` and of equivalence otherwise.
    An effect that is there and smaller than the margin is no difference: the margin says what counts."""
    assert e.effect is not None
    unit = "points" if test.metric == "diverged" else "%"
    margin = f"{test.margin:g} {unit}"
    differs, small = p < alpha, q < alpha
    beyond = differs and abs(e.effect) > test.margin
    if test.direction == "not_higher":
        if small:
            return "supported", f"shown to be less than {margin} higher"
        return ("contradicted", f"shown to be more than {margin} higher") if beyond and e.effect > 0 else (
            "not decided", f"neither shown to be less than {margin} higher, nor more"
        )  # fmt: skip
    if test.direction == "equal":
        if small:
            return "supported", f"shown to lie within {margin} either way"
        if beyond:
            return "contradicted", f"a difference of more than {margin} is shown"
        return (
            "not decided",
            f"neither shown to lie within {margin} either way, nor beyond",
        )
    if small:
        return "no difference", f"within {margin} either way" + (", though not 0" if differs else "")
    if differs:
        right = (e.effect < 0) == (test.direction == "lower")
        return (
            "supported" if right else "contradicted"
        ), f"the difference is {'as' if right else 'the opposite of what is'} claimed"
    return "not decided", f"neither a difference nor its absence within {margin} is shown"


def _row(
    one: Judged, ps: tuple[float, float] | None, family: int, studies: list[Mapping[str, Any]], alpha: float
) -> Row:
    from lmablate.claims.words import diverged_words, more_seeds, no_pair, remarks

    test, e, sample = one.test, one.estimate, one.sample
    n = len(e.values)
    verdict: Verdict = "not decided"
    more = None
    if sample is None:
        reason = one.problem
    elif ps is None:
        reason = no_pair(sample, e)
    elif one.claim.smallest_params and (size := _size(sample)) < one.claim.smallest_params:
        verdict = "not testable at this scale"
        reason = f"said of models from {one.claim.smallest_params:,} parameters; these have {size:,}"
    elif n < one.claim.minimum_seeds and test.metric != "diverged":
        more = one.claim.minimum_seeds - n
        reason = f"{n} paired seed{'s' * (n != 1)}, of at least {one.claim.minimum_seeds}: a difference cannot be told from noise"
    else:
        verdict, reason = decide(test, e, *ps, alpha)
        if test.metric != "diverged" and (lost := diverged_words(e.diverged)):
            reason += f", where {lost}"
        if verdict == "not decided":
            more, said = more_seeds(test, e, n, alpha / family)
            reason += f"; {said}"
    notes = [*(sample.notes if sample else ()), *e.notes, *remarks(one.claim, test, sample, e, studies)]
    interval = list(e.interval) if e.interval else None
    return {
        "says": test.says, "where": sample.where if sample else {}, "metric": test.metric, "direction": test.direction,
        "margin": test.margin, "unit": "percentage points" if test.metric == "diverged" else "per cent",
        "plus": _side(sample, 1) or words_of(test, 1), "minus": _side(sample, -1) or words_of(test, -1),
        "verdict": verdict, "reason": reason, "notes": notes, "more_seeds": more,
        "effect": e.effect, "interval_95": interval, "bootstrap_95": list(e.bootstrap) if e.bootstrap else None,
        "effect_in_units": None if e.effect is None or e.scale is None else e.effect * e.scale,
        "values": e.values if test.metric != "diverged" else [], "sd": e.sd, "n": n, "correlation": e.correlation,
        "p": e.p if sample else None, "p_holm": ps[0] if ps else None, "p_beyond": e.p_beyond if sample else None,
        "p_sign_flip": e.p_sign_flip,
        "p_claim": _p_claim(test, e) if sample else None, "p_claim_holm": ps[1] if ps else None, "family": family,
        "pooled": e.pooled._asdict() if e.pooled else None,
        "diverged": {side: list(count) for side, count in e.diverged.items()},
        "unpaired": sample.unpaired if sample else 0, "sweeps": list(sample.sweeps) if sample else [],
        "runs": {"plus": _run_ids(sample, 1), "minus": _run_ids(sample, -1)},
    }  # fmt: skip


def _claim_row(claim: Claim, tests: list[Row]) -> Row:
    verdict: Verdict = "not testable at this scale"
    reason = claim.untested or ""
    if tests:
        verdict = min((test["verdict"] for test in tests), key=GRAVITY.index)
        deciding = [test for test in tests if test["verdict"] == verdict]
        reason = "; ".join(dict.fromkeys(test["reason"] for test in deciding))
        if len(deciding) < len(tests):
            reason = f"{len(deciding)} of {len(tests)} tests: {reason}"
    more = [test["more_seeds"] for test in tests if test["more_seeds"] is not None]
    kept = ("id", "group", "priority", "statement", "expected", "sweep", "minimum_seeds")
    return {
        **{key: getattr(claim, key) for key in kept},
        "published": [entry.model_dump() for entry in claim.published],
        "verdict": verdict,
        "reason": reason,
        "more_seeds": max(more) if more else None,
        "tests": tests,
    }


def _side(sample: Sample | None, sign: int) -> list[str]:
    return [arm.name for arm in sample.arms if arm.weight * sign > 0] if sample else []


def _run_ids(sample: Sample | None, sign: int) -> list[str]:
    arms = [arm for arm in sample.arms if arm.weight * sign > 0] if sample else []
    return sorted({str(row["run_id"]) for arm in arms for rows in arm.rows.values() for row in rows})


def words_of(test: Hypothesis, sign: int) -> list[str]:
    return [words(term.arms) for term in test.contrast if term.weight * sign > 0]


def _size(sample: Sample) -> int:
    rows = (row for arm in sample.arms for own in arm.rows.values() for row in own)
    return max(int(row["n_params"]) for row in rows if not is_missing(row["n_params"]))
