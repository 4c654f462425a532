"""Read a claim off a ladder: what its effect does from the smallest to the largest size, in words, and tests of laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from lmablate.claims.claim import Claim, Hypothesis, LawTest
from lmablate.claims.predicates import Row, matches
from lmablate.core.errors import ConfigError
from lmablate.scaling.ladder import Ladder
from lmablate.scaling.ladder_summary import laws_of, trend_words
from lmablate.scaling.law import Law
from lmablate.scaling.multiples import Effect, effect
from lmablate.scaling.optimum import exponent
from lmablate.scaling.points import TOGETHER

SIZE_OF = {"kaplan_n": "params", "kaplan_d": "tokens"}  # of laws of one size while the other is no limit
Word = Literal["supported", "contradicted", "not decided"]
AND_TREND = {
    "grows": "at the largest rung and growing", "steady": "at the largest rung and steady", "fades": "at the largest rung, but fading",
    "not decided": "at the largest rung, its trend not decided",
}  # fmt: skip


def with_ladders(
    rows: list[Row], known: Mapping[str, Claim], runs: Sequence[Row], ladders: Sequence[Ladder]
) -> list[Row]:
    """Return the claims' `rows` (verdict.judge), those of ladder studies with the key `ladder`: what their sizes show.

    A claim that asks for a ladder has its verdict from that; others keep that of single rungs."""
    laws: dict[tuple[str, str], Law | str] = {}
    by_study = {ladder.study: ladder for ladder in ladders}
    out = []
    for row in rows:
        claim, ladder = known[row["id"]], by_study.get(row["study"])
        if ladder is None and claim.evidence and claim.tests:
            message = "asks for several sizes, and this is one: train a ladder (ladder=laptop)"
            row = row | {"verdict": "not decided", "reason": message, "more_seeds": None}
            row["joint"] = (
                None if row["joint"] is None else {**row["joint"], "verdict": "not decided", "reason": message}
            )
        elif ladder is not None:
            row = row | {"ladder": _reading(claim, ladder, runs, laws)}
            if claim.evidence and row["ladder"]:
                own = {key: row["ladder"][key] for key in ("verdict", "reason")} | {"more_seeds": None}
                row |= own | {"joint": None if row["joint"] is None else {**row["joint"], **own}}
        out.append(row)
    return out


def _reading(
    claim: Claim, ladder: Ladder, runs: Sequence[Row], laws: dict[tuple[str, str], Law | str]
) -> dict[str, Any] | None:
    """Return what a ladder shows of a claim, None where its arms are not those of the claim."""
    if claim.laws:
        return _of_laws(claim.laws, ladder)
    for test in claim.tests:
        sides = _arms(test, ladder, runs)
        if sides is None:
            continue
        plus, minus = sides
        key = (ladder.study, minus)
        if key not in laws:
            try:
                laws[key] = ladder.law(arm=minus, held_out=True)
            except ConfigError as error:
                laws[key] = str(error)
        law = laws[key]
        if isinstance(law, str):
            return {"verdict": "not decided", "reason": law, "words": law, "trend": "not decided", "arm": plus}
        found = effect(ladder, plus, law, minus=minus)
        verdict, words = words_of(found, claimed=-1 if test.direction == "lower" else 1)
        pairs = sum(m.n for m in found.multiples)
        if pairs < claim.minimum_seeds:
            verdict, words = "not decided", f"{pairs} pairs over all rungs, of at least {claim.minimum_seeds}"
        top = max((m.params for m in found.multiples), default=0.0)
        far = ""
        if claim.said_of and top < claim.said_of:
            far = f"; said of models of {claim.said_of:,.0f} parameters, and the largest rung has {top:,.0f}"
        return {
            "verdict": verdict,
            "reason": f"{words} ({trend_words(found)}){far}",
            "words": words,
            "trend": found.trend,
            "arm": plus,
        }
    return None


def _arms(test: Hypothesis, ladder: Ladder, runs: Sequence[Row]) -> tuple[str, str] | None:
    """Return the arms of a ladder that a test of the final loss sets against each other, None unless there is one of each."""
    if test.metric != "val_loss" or test.direction not in ("lower", "higher") or len(test.contrast) != 2:
        return None
    rows = {row["run_id"]: row for row in runs}
    sides = []
    for term in sorted(test.contrast, key=lambda one: -one.weight):
        wanted = {**(test.where or {}), **term.arms}
        found = [
            arm
            for arm in ladder.arms
            if (own := [rows[run.run_id] for run in ladder.runs if run.arm == arm and run.run_id in rows])
            and all(matches(row, wanted) for row in own)
        ]
        if len(found) != 1:
            return None
        sides.append(found[0])
    return sides[0], sides[1]


def words_of(found: Effect, claimed: int) -> tuple[Word, str]:
    """Return the verdict on an effect over the rungs, and its reading; `claimed`: the sign of the claimed loss difference."""
    if found.problem:
        return "not decided", found.problem
    signs = [(1 if m.difference * claimed > 0 else -1) if m.differs else 0 for m in found.multiples]
    top, below = signs[-1], set(signs[:-1]) - {0}
    if top:
        word: Word = "supported" if top > 0 else "contradicted"
        if -top in below:
            other = "contradicted" if top > 0 else "supported"
            return word, f"{other} at small sizes, {word} at the largest rung: it turns"
        return word, f"{word} {AND_TREND.get(found.trend, AND_TREND['not decided'])}"
    if below == {1}:
        where = f"from {found.gone_at} on" if found.gone_at else "at the largest rung"
        return "not decided", f"supported at small sizes, and nothing is left of it {where}"
    if below == {-1}:
        turning = " and turning" if found.trend == "fades" else ", not decided at the largest rung"
        return "not decided", f"contradicted at small sizes{turning}"
    return "not decided", "mixed signs below the largest rung" if below else "no effect shown at any rung"


def _of_laws(tests: Sequence[LawTest], ladder: Ladder) -> dict[str, Any]:
    """Return what the laws of a ladder's baseline say: an interval inside the claimed range supports, one outside contradicts."""
    laws, problems = laws_of(ladder)
    words: list[Word] = []
    reasons = []
    for test in tests:
        if test.form not in laws:
            words.append("not decided")
            reasons.append(problems[test.form])
            continue
        if test.form in SIZE_OF and (other := _grows_along(ladder, SIZE_OF[test.form])):
            words.append("not decided")
            reasons.append(
                f"{other} grow with {SIZE_OF[test.form]}, so the exponent of {test.form} holds both: it takes rungs of equal {other} "
                "(sweep.ladder.rungs)"
            )
            continue
        law = laws[test.form]
        a = test.parameter == "a"
        value = exponent(law.values) if a else law.values[test.parameter]
        low, high = law.interval(exponent if a else itemgetter(test.parameter))
        inside, outside = test.low <= low and high <= test.high, high < test.low or low > test.high
        words.append("supported" if inside else "contradicted" if outside else "not decided")
        place = "inside" if inside else "outside" if outside else "not wholly inside"
        reasons.append(
            f"{test.parameter} of {test.form} is {value:.3g} ({low:.3g} to {high:.3g}, 90 %), {place} {test.low:g} to {test.high:g}"
        )
    order: tuple[Word, ...] = ("contradicted", "not decided", "supported")
    verdict = min(words, key=order.index)
    reason = "; ".join(reasons)
    return {"verdict": verdict, "reason": reason, "words": reason, "trend": None, "arm": None}


def _grows_along(ladder: Ladder, field: str) -> str | None:
    """Return the other size, of params and tokens, if it grows with `field` from rung to rung."""
    other = "tokens" if field == "params" else "params"
    a, b = (np.log([ladder.size(rung, name) for rung in ladder.rungs]) for name in (field, other))
    return other if np.ptp(b) > 0 and np.corrcoef(a, b)[0, 1] > TOGETHER else None
