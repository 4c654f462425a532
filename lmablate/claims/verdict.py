"""Judge claims from finished runs, at one error rate per study and at one for the whole report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lmablate.claims.claim import Claim, Hypothesis, load_claims
from lmablate.claims.error_rates import Corrected, Group, Judged, Requests, correct, groups, p_claim
from lmablate.claims.evidence import Sample, is_short
from lmablate.claims.explanations import diverged_note, more_seeds, no_pair, remarks
from lmablate.claims.ladder_verdicts import with_ladders
from lmablate.claims.measure import Estimate
from lmablate.claims.predicates import describe
from lmablate.claims.rows import Table
from lmablate.claims.statistics import OVER_STUDIES, statistic_row
from lmablate.results.arms import is_missing
from lmablate.scaling.ladder import ladders

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Verdict = Literal["supported", "contradicted", "no difference", "not decided", "not testable at this scale"]
# The verdict on a claim with several tests or settings is the first of these that any of them has.
GRAVITY: tuple[Verdict, ...] = (
    *("contradicted", "no difference", "not testable at this scale", "not decided", "supported"),
)
ALPHA = 0.05
NEEDS_LADDER = "asks for several sizes: train a ladder (ladder=laptop)"


def judge(
    runs: pd.DataFrame,
    *,
    studies: Iterable[Mapping[str, Any]] = (),
    requested: Requests | None = None,
    claims: Mapping[str, Claim] | None = None,
    alpha: float = ALPHA,
) -> list[Row]:
    """Return the claims that `runs` (load_runs) touch, each with its verdict and its tests; JSON values only.

    A row is the verdict of one study (stored sweep) on one claim, from its own runs. `studies`: contents of
    studies/<sweep>.json, for learning rates at an edge, interim looks and the claims they name. `requested`: more claims by
    sweep, None for runs of no sweep. Requested claims are judged even without runs. Others that the runs touch follow as
    ``scope`` "not asked", and those that only runs of several studies touch as "across studies".

    A verdict is corrected by Holm (1979) within its study and scope. ``joint`` is the verdict when all tests that studies
    requested are corrected together; it is None for the others, which are not part of that family.
    """
    studies = list(studies)
    known = load_claims() if claims is None else claims
    wanted: dict[str | None, set[str]] = {sweep: set(names) for sweep, names in (requested or {}).items()}
    for study in studies:
        wanted.setdefault(study["sweep"], set()).update(study.get("claims", ()))
    table = Table.of(runs)
    tests = groups(table, known, studies, wanted)
    joint = [one for group in tests if group.scope == "asked" for one in group.measured]
    corrected = {id(one): ps for one, ps in zip(joint, correct(joint), strict=True)}
    rows = [row for group in tests for row in _rows(group, known, wanted, corrected, studies, alpha)]
    found = ladders(runs, studies)
    had = {(row["id"], row["study"]) for row in rows}
    laws = [(claim, one.study) for one in found for claim in known.values() if claim.laws]
    rows += [_claim_row(c, Group(study, "not asked", []), []) for c, study in laws if (c.id, study) not in had]
    rows = with_ladders(rows, known, table.rows, found)
    return rows + _of_statistics(table, known, wanted, rows)


def _of_statistics(
    table: Table, known: Mapping[str, Claim], wanted: Mapping[str | None, set[str]], verdicts: Sequence[Row]
) -> list[Row]:
    """Return the claims on statistics that a study requested, each from its own runs, and those over all studies, if measured."""
    rows = []
    for claim in known.values():
        for sweep in (name for name, ids in wanted.items() if claim.statistics and claim.id in ids):
            own = table.of_sweep(sweep)
            tests = [statistic_row(test, own, verdicts, known) for test in claim.statistics or ()]
            joint = [
                {
                    **test,
                    "joint": {"verdict": test["verdict"], "reason": test["reason"], "more_seeds": None} | _UNCORRECTED,
                }
                for test in tests
            ]
            rows.append(_claim_row(claim, Group(sweep, "asked", []), joint))
        tests = [
            statistic_row(test, table, verdicts, known)
            for test in claim.statistics or ()
            if test.statistic in OVER_STUDIES
        ]
        if any(test["effect"] is not None for test in tests):
            rows.append(
                _claim_row(claim, Group(None, "across studies", []), [{**test, "joint": None} for test in tests])
            )
    return rows


def _rows(
    group: Group,
    known: Mapping[str, Claim],
    wanted: Mapping[str | None, set[str]],
    joint: Mapping[int, Corrected],
    studies: list[Mapping[str, Any]],
    alpha: float,
) -> list[Row]:
    """Return the claims of one group; `joint` holds the report's correction by the id of the test."""
    own = {id(one): ps for one, ps in zip(group.measured, correct(group.measured), strict=True)}
    tests: dict[str, list[Row]] = {}
    for one in group.tests:
        row = _row(one, own.get(id(one)), studies, alpha)
        row["joint"] = None if group.scope != "asked" else _joint(one, joint.get(id(one)), alpha)
        tests.setdefault(one.claim.id, []).append(row)
    requested = wanted.get(group.study, set()) if group.scope == "asked" else set()
    untested = [claim.id for claim in known.values() if claim.id in requested and not (claim.tests or claim.statistics)]
    return [_claim_row(known[name], group, tests.get(name, [])) for name in [*tests, *untested]]


def decide(test: Hypothesis, e: Estimate, p: float, q: float, alpha: float = ALPHA) -> tuple[Verdict, str]:
    """Return the verdict on a measured hypothesis from its corrected p values, and the reason.

    `p` is of no difference (for `equal` and `not_higher`: of none beyond the margin). `q` is of the one-sided test for
    `not_higher`, else of equivalence. An effect smaller than the margin is no difference, since the margin says what counts.
    """
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


def _verdict(one: Judged, ps: Corrected | None, alpha: float) -> tuple[Verdict, str, int | None]:
    """Return the verdict on one test at the p values of a family, the reason, and how many more seeds would decide."""
    test, e, sample = one.test, one.estimate, one.sample
    n, least = len(e.values), one.claim.minimum_seeds
    if sample is None:
        return "not decided", one.problem, None
    if ps is None:
        return "not decided", no_pair(sample, e), None
    if one.claim.smallest_params and (size := _size(sample)) < one.claim.smallest_params:
        message = f"said of models from {one.claim.smallest_params:,} parameters; these have {size:,}"
        return "not testable at this scale", message, None
    if n < least and test.metric != "diverged":
        message = f"{n} paired seed{'s' * (n != 1)}, of at least {least}: a difference cannot be told from noise"
        return "not decided", message, least - n
    verdict, reason = decide(test, e, ps.p, ps.q, alpha)
    if test.metric != "diverged" and (lost := diverged_note(e)):
        reason += f", where {lost}"
    if verdict != "not decided":
        return verdict, reason, None
    more, message = more_seeds(test, e, n, alpha / ps.family)
    return verdict, f"{reason}; {message}", more


def _joint(one: Judged, ps: Corrected | None, alpha: float) -> Row:
    """Return the verdict on one test among all requested tests of the report."""
    verdict, reason, more = _verdict(one, ps, alpha)
    return {"verdict": verdict, "reason": reason, "more_seeds": more} | _corrected(ps)


def _corrected(ps: Corrected | None) -> Row:
    return {"p_holm": ps.p, "p_claim_holm": ps.q, "family": ps.family} if ps else _UNCORRECTED


_UNCORRECTED = {"p_holm": None, "p_claim_holm": None, "family": None}


def _row(one: Judged, ps: Corrected | None, studies: list[Mapping[str, Any]], alpha: float) -> Row:

    test, e, sample = one.test, one.estimate, one.sample
    verdict, reason, more = _verdict(one, ps, alpha)
    notes = [
        *(sample.notes if sample else ()),
        *e.notes,
        *remarks(one.claim, test, sample, e, studies),
    ]
    interval = list(e.interval) if e.interval else None
    length = sample.tokens_per_param if sample else None
    return {
        "says": test.says, "where": sample.where if sample else {}, "metric": test.metric, "direction": test.direction,
        "margin": test.margin, "unit": "percentage points" if test.metric == "diverged" else "per cent",
        "plus": _side(sample, 1) or _describe_side(test, 1), "minus": _side(sample, -1) or _describe_side(test, -1),
        "verdict": verdict, "reason": reason, "notes": notes, "more_seeds": more,
        "tokens_per_param": length, "short_run": is_short(length),
        "effect": e.effect, "interval_95": interval, "bootstrap_95": list(e.bootstrap) if e.bootstrap else None,
        "effect_in_units": None if e.effect is None or e.scale is None else e.effect * e.scale,
        "values": e.values if test.metric != "diverged" else [], "sd": e.sd, "n": len(e.values), "correlation": e.correlation,
        "p": e.p if sample else None, "p_beyond": e.p_beyond if sample else None, "p_sign_flip": e.p_sign_flip,
        "p_claim": p_claim(test, e) if sample else None, **_corrected(ps),
        "pooled": e.pooled._asdict() if e.pooled else None,
        "diverged": {side: list(count) for side, count in e.diverged.items()},
        "finished": None if e.finished is None else {"effect": e.finished[0], "n": e.finished[1]},
        "unpaired": sample.unpaired if sample else 0, "sweeps": list(sample.sweeps) if sample else [],
        "runs": {"plus": _run_ids(sample, 1), "minus": _run_ids(sample, -1)},
    }  # fmt: skip


def _claim_row(claim: Claim, group: Group, tests: list[Row]) -> Row:
    kept = ("id", "group", "priority", "statement", "expected", "sweep", "minimum_seeds")
    return {
        **{key: getattr(claim, key) for key in kept},
        "study": group.study,
        "scope": group.scope,
        "published": [entry.model_dump() for entry in claim.published],
        **_worst(claim, tests),
        **_length(tests),
        "joint": _worst(claim, [test["joint"] for test in tests]) if group.scope == "asked" else None,
        "ladder": None,
        "tests": tests,
    }


def _worst(claim: Claim, tests: Sequence[Row]) -> Row:
    """Return the verdict on a claim from those on its tests, with its reason."""
    if not tests:
        return {"verdict": "not testable at this scale", "reason": claim.untested or NEEDS_LADDER, "more_seeds": None}
    verdict = min((test["verdict"] for test in tests), key=GRAVITY.index)
    deciding = [test for test in tests if test["verdict"] == verdict]
    reason = "; ".join(dict.fromkeys(test["reason"] for test in deciding))
    if len(deciding) < len(tests):
        reason = f"{len(deciding)} of {len(tests)} tests: {reason}"
    more = [test["more_seeds"] for test in tests if test["more_seeds"] is not None]
    return {"verdict": verdict, "reason": reason, "more_seeds": max(more) if more else None}


def _length(tests: Sequence[Row]) -> Row:
    """Return the fewest tokens per parameter behind a claim's verdict, and whether that is too short to count."""
    verdict = min((test["verdict"] for test in tests), key=GRAVITY.index, default=None)
    known = [test["tokens_per_param"] for test in tests if test["verdict"] == verdict]
    length = min((one for one in known if one is not None), default=None)
    return {"tokens_per_param": length, "short_run": is_short(length)}


def _side(sample: Sample | None, sign: int) -> list[str]:
    return [arm.name for arm in sample.arms if arm.weight * sign > 0] if sample else []


def _run_ids(sample: Sample | None, sign: int) -> list[str]:
    arms = [arm for arm in sample.arms if arm.weight * sign > 0] if sample else []
    return sorted({str(row["run_id"]) for arm in arms for rows in arm.rows.values() for row in rows})


def _describe_side(test: Hypothesis, sign: int) -> list[str]:
    return [describe(term.arms) for term in test.contrast if term.weight * sign > 0]


def _size(sample: Sample) -> int:
    rows = (row for arm in sample.arms for own in arm.rows.values() for row in own)
    return max(int(row["n_params"]) for row in rows if not is_missing(row["n_params"]))
