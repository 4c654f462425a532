"""Judge the survey's claims by counting systems in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from lmablate.claims.claim import read_claims
from lmablate.claims.predicates import is_wanted
from lmablate.core.settings import Settings
from lmablate.stats.counts import clopper_pearson
from lmablate.survey.table import COLUMNS, Row, systems

FILE = Path(__file__).parent / "claims.yaml"
ALPHA = 0.05
SAID = 2024  # the lecture is of spring 2025, and speaks of systems of the years up to this one
BARS = {"most": 0.5, "nearly_all": 0.9}  # the share that must be exceeded
Value = str | bool | int | float
Wanted = dict[str, Value | list[Value]]
Verdict = Literal["supported", "contradicted", "not decided"]


class SurveyClaim(Settings):
    """One statement about published systems; the head of claims.yaml explains the keys."""

    id: str
    group: str
    statement: str
    said_in: str
    holds: Wanted
    rule: Literal["most", "nearly_all", "all"]
    where: Wanted | None = None
    but: list[str] | None = None
    since: int | None = None
    table: list[int] | None = None
    unit: Literal["systems"] | None = None

    @model_validator(mode="after")
    def _known(self) -> SurveyClaim:
        for column in [*self.holds, *(self.where or {})]:
            if column not in COLUMNS:
                raise ValueError(f"{column} is no column of the survey; there are {', '.join(COLUMNS)}")
        if self.since is not None and (self.rule == "all" or "year" in (self.where or {})):
            raise ValueError(
                "since is for a share that grew; use where.year for a statement about all systems of some years"
            )
        if self.rule != "all" and "release" in (self.where or {}):
            raise ValueError("a statement about named releases is about all of them: rule: all")
        return self


@cache
def load_claims() -> dict[str, SurveyClaim]:
    """Return all claims by id, in the order of the file. Raises ConfigError if it is wrong."""
    return read_claims([FILE], SurveyClaim)


def judged(table: Sequence[Row] | None = None, claims: Mapping[str, SurveyClaim] | None = None) -> list[Row]:
    """Return each claim with its verdict, JSON values only.

    The verdict is on systems up to 2024, of which the lecture speaks. `later` judges the same statement on those since, as a share
    and not as a rise, and `became` says what has become of it.

    Counted are releases with published values, each by its largest system: `count` of `n`, with the exact 95 % interval
    (Clopper and Pearson 1934) and the `exceptions` by name. `systems` counts every size, `lecture_table` the lecture's
    own 25 models, `before` the releases before `since`. A statement about most systems (above 0.5) or nearly all (above
    0.9) is supported or contradicted if the whole interval lies on one side; with `since`, the share must also have grown
    (Fisher's exact test). A statement about all is contradicted by one exception. Intervals are not corrected for each other.
    """
    rows = systems() if table is None else table
    return [_judge(claim, rows) for claim in (load_claims() if claims is None else claims).values()]


def _judge(claim: SurveyClaim, table: Sequence[Row]) -> Row:
    said = _judge_years(claim, [row for row in table if row["year"] <= SAID])
    now = claim.model_copy(update={"since": None})
    later = _judge_years(now, [row for row in table if row["year"] > SAID])
    return {
        **{key: getattr(claim, key) for key in ("id", "group", "statement", "said_in", "rule", "since")},
        "unit": claim.unit or "releases",
        **said,
        "lecture_table": list(_count(claim, [row for row in table if row["in_lecture_table"] and _in(row, claim)])[:2]),
        "later": {key: value for key, value in later.items() if key not in ("before", "p_grew")},
        "became": _became(said["verdict"], later["verdict"], later["n"]),
    }


def _became(said: Verdict, later: Verdict, n: int) -> str:
    """Return what has become of a statement."""
    if not n:
        return "nothing to count"
    if later == "not decided":
        return later
    if later == "supported":
        return "still so" if said == later else "so now"
    return "still not so" if said == later else "not so now"


def _judge_years(claim: SurveyClaim, table: Sequence[Row]) -> Row:
    matching = [row for row in table if matches(row, claim.where or {}) and row["release"] not in (claim.but or ())]
    counted = matching if claim.unit == "systems" else [row for row in matching if row["stands_for_release"]]
    now = [row for row in counted if claim.since is None or row["year"] >= claim.since]
    count, n, exceptions = _count(claim, now)
    every = [row for row in matching if claim.since is None or row["year"] >= claim.since]
    before = _count(claim, [row for row in counted if claim.since is not None and row["year"] < claim.since])[:2]
    named = "release" in (claim.where or {})  # these are all there are, not a sample
    interval = clopper_pearson(count, n) if n and not named else None
    p = _grew((count, n), before) if claim.since is not None and n and before[1] else None
    verdict, reason = _decide(claim, count, n, interval, before, p)
    return {
        "verdict": verdict, "reason": reason, "count": count, "n": n,
        "share": count / n if n else None, "interval_95": list(interval) if interval else None,
        "before": list(before) if claim.since is not None else None, "p_grew": p, "unknown": len(now) - n,
        "exceptions": [row["system"] if claim.unit == "systems" else row["release"] for row in exceptions],
        "systems": list(_count(claim, every)[:2]),
    }  # fmt: skip


def _in(row: Row, claim: SurveyClaim) -> bool:
    """Return True if a claim applies to a row, whatever its years: the lecture's table shows all of them together."""
    return bool(matches(row, {key: value for key, value in (claim.where or {}).items() if key != "year"}))


def _count(claim: SurveyClaim, rows: Sequence[Row]) -> tuple[int, int, list[Row]]:
    """Return how many of `rows` are as claimed, of how many with published values, and the exceptions."""
    known = [(row, as_claimed) for row in rows if (as_claimed := matches(row, claim.holds)) is not None]
    exceptions = [row for row, as_claimed in known if not as_claimed]
    return len(known) - len(exceptions), len(known), exceptions


def _grew(now: tuple[int, int], before: tuple[int, int]) -> float:
    """Return the one-sided p of Fisher's exact test that the share is higher than before."""
    from scipy import stats

    table = [[now[0], now[1] - now[0]], [before[0], before[1] - before[0]]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def _decide(
    claim: SurveyClaim,
    count: int,
    n: int,
    interval: tuple[float, float] | None,
    before: tuple[int, int],
    p: float | None,
) -> tuple[Verdict, str]:
    if not n:
        return "not decided", "no system with these facts is in the table"
    if claim.rule == "all":
        if count == n:
            return "supported", f"all {n} of them"
        return "contradicted", f"{n - count} of {n} {'is' if n - count == 1 else 'are'} otherwise"
    assert interval is not None  # named systems have no share
    bar = BARS[claim.rule]
    counts = f"{count} of {n}, {count / n:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"
    if claim.since is not None:
        counts += f" since {claim.since}; before {before[0]} of {before[1]}" + (
            f", p {p:.2g} of no rise" if p is not None else ""
        )
    if interval[1] < bar:
        return "contradicted", f"{counts}: below {bar:.0%}"
    if interval[0] > bar and (claim.since is None or (p is not None and p < ALPHA)):
        return "supported", f"{counts}: above {bar:.0%}"
    if interval[0] > bar:
        return "not decided", f"{counts}: above {bar:.0%}, and no rise is shown"
    few = f", and {n} are too few to show it" if count == n else ""
    return "not decided", f"{counts}: neither above {bar:.0%} nor below{few}"


def matches(row: Row, wanted: Wanted) -> bool | None:
    """Return True if every column is as wanted, or None if that is not published."""
    results = [None if row[column] is None else is_wanted(row[column], value) for column, value in wanted.items()]
    if False in results:
        return False
    return None if None in results else True
