"""Group tests into families that share an error rate: one study, all studies of a report, and tests that no study planned.

Claims are measured study by study, each on its own runs. Neither the numbers nor the notes nor the correction of a claim
depend on other studies in the report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lmablate.claims.claim import Claim, Hypothesis
from lmablate.claims.evidence import Sample, SampleSearch, find
from lmablate.claims.measure import Estimate, Looks, measure
from lmablate.claims.rows import Table
from lmablate.results.arms import is_missing
from lmablate.stats.multiplicity import holm

Scope = Literal["asked", "not asked", "across studies"]
Requests = Mapping[str | None, Collection[str]]


class Judged(NamedTuple):
    """A hypothesis in one setting, before correction; `sample` is None if no runs could be compared (`problem` says why)."""

    claim: Claim
    test: Hypothesis
    sample: Sample | None
    estimate: Estimate
    problem: str


class Group(NamedTuple):
    """The tests of one study. `study` is its stored sweep; None for runs of no sweep, and for arms of several studies."""

    study: str | None
    scope: Scope
    tests: list[Judged]

    @property
    def measured(self) -> list[Judged]:
        """Return the tests with an estimate. A test that cannot be measured does not count in the correction."""
        return [one for one in self.tests if one.estimate.effect is not None]


class Corrected(NamedTuple):
    """The p values of a test after Holm (1979) over `family` tests: `p` of no difference, `q` of the claim's own test."""

    p: float
    q: float
    family: int


def correct(tests: Sequence[Judged]) -> list[Corrected]:
    """Return Holm's correction of one family, separately for difference tests and for one-sided and equivalence tests."""
    p = holm([_p_against(one.test, one.estimate) for one in tests])
    q = holm([p_claim(one.test, one.estimate) for one in tests])
    return [Corrected(*both, len(tests)) for both in zip(p, q, strict=True)]


def groups(
    table: Table, known: Mapping[str, Claim], studies: Iterable[Mapping[str, Any]], wanted: Requests
) -> list[Group]:
    """Return the claims that `table` touches or that are requested, by study.

    First come those that studies requested, then those that their runs bear on, then those that need runs of several studies.
    A claim that no study measured on its own runs is looked for among all runs together."""
    looks = {study["sweep"]: rule for study in studies if (rule := _looks(study))}
    rows = {sweep: table.of_sweep(sweep) for sweep in _sweeps(table, wanted)}
    out = []
    scopes: tuple[Scope, ...] = ("asked", "not asked")
    for scope in scopes:
        for sweep, own in rows.items():
            claims = [claim for claim in known.values() if (claim.id in wanted.get(sweep, ())) == (scope == "asked")]
            tests = [one for claim in claims for one in _measure(claim, own, scope == "asked", looks)]
            out.append(Group(sweep, scope, tests))
    measured = {one.claim.id for group in out for one in group.tests if one.sample is not None}
    if len(rows) > 1:
        whole, left = table.each_run_once(), [claim for claim in known.values() if claim.id not in measured]
        tests = [one for claim in left for one in _measure(claim, whole, False, looks)]
        # These arms were not planned. If several runs could be an arm, it is unknown which one is meant.
        out.append(Group(None, "across studies", _across(tests)))
    return out


def _across(tests: Sequence[Judged]) -> list[Judged]:
    """Return the tests that arms of several studies allow, and what a claim for several texts still lacks."""
    clear = [one.sample is not None and not one.sample.picked for one in tests]
    touched = {one.claim.id for one, is_clear in zip(tests, clear, strict=True) if is_clear and one.claim.texts}
    return [
        one
        for one, is_clear in zip(tests, clear, strict=True)
        if is_clear or (one.sample is None and one.claim.id in touched)
    ]


def _sweeps(table: Table, requested: Requests) -> list[str | None]:
    """Return the stored sweeps with runs or requested claims, by name, and None last."""
    seen = {None if is_missing(row["sweep"]) else str(row["sweep"]) for row in table.rows} | set(requested)
    return sorted(seen, key=lambda sweep: (sweep is None, sweep))


def _measure(claim: Claim, runs: Table, named: bool, looks: Mapping[str, Looks]) -> list[Judged]:
    searches: list[tuple[Hypothesis, SampleSearch]] = [
        (test, found) for test in claim.tests for found in _searches(claim, test, runs)
    ]
    if not named and not any(f.samples for _, f in searches):
        return []
    out = []
    for test, f in searches:
        out += [
            Judged(claim, test, s, measure(s, test, next((looks[x] for x in s.sweeps if x in looks), None)), "")
            for s in f.samples
        ]
        if not f.samples:
            out.append(Judged(claim, test, None, Estimate(), f.problem))
    return out


def _searches(claim: Claim, test: Hypothesis, runs: Table) -> list[SampleSearch]:
    """Return the search for a hypothesis, or one for each text on which the claim must hold."""
    if claim.texts is None:
        return [find(runs, test)]
    found = [(text, find(runs.of_text(text, test.metric), test)) for text in claim.texts]
    return [
        search._replace(
            samples=[sample._replace(where={"text": text} | sample.where) for sample in search.samples],
            problem=f"on {text}, where the claim must hold too: {search.problem}" if search.problem else "",
        )
        for text, search in found
    ]


def _looks(study: Mapping[str, Any]) -> Looks | None:
    looks = study.get("looks") or {}
    if not looks.get("planned"):
        return None
    return Looks(looks.get("rule") or "obrien_fleming", tuple(looks["planned"]))


def _p_against(test: Hypothesis, estimate: Estimate) -> float:
    """Return the p value against the claim: of a difference, or of one beyond the margin if only that counts."""
    return estimate.p_beyond if test.direction in ("equal", "not_higher") else estimate.p


def p_claim(test: Hypothesis, estimate: Estimate) -> float:
    """Return the p value of the one-sided test for "no higher", else of equivalence within the margin."""
    return estimate.p_not_higher if test.direction == "not_higher" else estimate.p_equal
