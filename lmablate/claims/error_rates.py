"""Which tests share an error rate: those of one study; beside it those of all studies of a report; and those nobody asked for.

Claims are measured study by study, each on its own runs, so that neither its numbers nor its notes nor its correction depend
on what else lies in the report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lmablate.claims.claim import Claim, Hypothesis
from lmablate.claims.evidence import Found, Sample, find
from lmablate.claims.measure import Estimate, Looks, measure
from lmablate.claims.rows import Table
from lmablate.results.arms import is_missing
from lmablate.stats.multiplicity import holm

Scope = Literal["asked", "not asked", "across studies"]
Asked = Mapping[str | None, Collection[str]]


class Judged(NamedTuple):
    """A hypothesis in one setting, before the family is corrected; `sample` is null where no runs could be compared."""

    claim: Claim
    test: Hypothesis
    sample: Sample | None
    estimate: Estimate
    problem: str


class Group(NamedTuple):
    """What one study says of claims. `study`: its stored sweep; None for runs of none, and for arms of several studies."""

    study: str | None
    scope: Scope
    tests: list[Judged]

    @property
    def measured(self) -> list[Judged]:
        """What cannot be measured costs no other test anything."""
        return [one for one in self.tests if one.estimate.effect is not None]


class Corrected(NamedTuple):
    """`p` of no difference and `q` of the one-sided or equivalence test, both by Holm (1979) over `family` tests."""

    p: float
    q: float
    family: int


def correct(tests: Sequence[Judged]) -> list[Corrected]:
    """Holm's correction over all tests of a difference, and over all one-sided and equivalence tests, of one family."""
    p = holm([_p_against(one.test, one.estimate) for one in tests])
    q = holm([p_claim(one.test, one.estimate) for one in tests])
    return [Corrected(*both, len(tests)) for both in zip(p, q, strict=True)]


def groups(table: Table, known: Mapping[str, Claim], studies: Iterable[Mapping[str, Any]], asked: Asked) -> list[Group]:
    """The claims that `table` touches or that are asked for, by study: first what studies asked, then what only their runs
    happen to bear on, then what takes runs of several studies.

    A claim that no study measured on its own runs is looked for among all runs together.
    """
    looks = {study["sweep"]: rule for study in studies if (rule := _looks(study))}
    rows = {sweep: table.of_sweep(sweep) for sweep in _sweeps(table, asked)}
    found = []
    scopes: tuple[Scope, ...] = ("asked", "not asked")
    for scope in scopes:
        for sweep, own in rows.items():
            claims = [claim for claim in known.values() if (claim.id in asked.get(sweep, ())) == (scope == "asked")]
            tests = [one for claim in claims for one in _measure(claim, own, scope == "asked", looks)]
            found.append(Group(sweep, scope, tests))
    measured = {one.claim.id for group in found for one in group.tests if one.sample is not None}
    if len(rows) > 1:
        whole, left = table.each_run_once(), [claim for claim in known.values() if claim.id not in measured]
        tests = [one for claim in left for one in _measure(claim, whole, False, looks)]
        # Nobody planned these arms: where several runs could be one, none of them was meant.
        found.append(Group(None, "across studies", [one for one in tests if one.sample and not one.sample.picked]))
    return found


def _sweeps(table: Table, asked: Asked) -> list[str | None]:
    """The stored sweeps that there are runs or questions of, by name, and None last."""
    seen = {None if is_missing(row["sweep"]) else str(row["sweep"]) for row in table.rows} | set(asked)
    return sorted(seen, key=lambda sweep: (sweep is None, sweep))


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


def p_claim(test: Hypothesis, estimate: Estimate) -> float:
    """Of the one-sided test for "no higher", else of equivalence within the margin."""
    return estimate.p_not_higher if test.direction == "not_higher" else estimate.p_equal
