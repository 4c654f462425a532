"""What a report says of claims: one sentence, the claims by study, and what the cells of their tables say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmablate.results.arms import show

Row = dict[str, Any]
ORDER = ("supported", "contradicted", "no difference", "not decided", "not testable at this scale")
DECIDED = ORDER[:3]
NAMED = 6  # claims that a sentence names


def headline(claims: Sequence[Mapping[str, Any]]) -> str:
    """One sentence or a few: how many claims got which verdict, what changes when all studies are corrected together, and
    how many verdicts nobody asked for."""
    asked = [claim for claim in claims if claim["scope"] == "asked"]
    studies = {claim["study"] for claim in asked}
    said = [_tally(asked or claims)]
    if len(studies) > 1:
        moved = [claim for claim in asked if claim["joint"]["verdict"] != claim["verdict"]]
        family = max((test["joint"]["family"] or 0 for claim in asked for test in claim["tests"]), default=0)
        what = f"all {family} tests of the {len(studies)} studies corrected together"
        named = ", ".join(f"{claim['id']} ({claim['study']}) is {claim['joint']['verdict']}" for claim in moved[:NAMED])
        more = f" and {len(moved) - NAMED} more change" if len(moved) > NAMED else ""
        said.append(f"With {what}, {named}{more}." if moved else f"With {what}, no verdict changes.")
    if asked and (rest := len(claims) - len(asked)):
        said.append(f"{rest} more {'is' if rest == 1 else 'are'} judged that these studies did not ask for.")
    return " ".join(said)


def _tally(claims: Sequence[Mapping[str, Any]]) -> str:
    words = [claim["verdict"] for claim in claims]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ORDER if word in words)
    return f"Of {len(claims)} claims: {counts}." if len(claims) > 1 else f"One claim: {counts.removeprefix('1 ')}."


def by_study(claims: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The claims under the name of the study that asked for them, then those that none asked for: `name` (a stored sweep, or
    None), `words` of the heading, `asked`, and `claims` with what their cells say."""
    found: dict[str, Row] = {}
    several = len({claim["study"] for claim in claims if claim["scope"] == "asked"}) > 1
    for claim in claims:
        words, asked = group_words(claim), claim["scope"] == "asked"
        group = found.setdefault(words, {"name": claim["study"], "words": words, "asked": asked, "claims": []})
        group["claims"].append({**claim, **_claim_words(claim, several)})
    return list(found.values())


def group_words(claim: Mapping[str, Any]) -> str:
    """The heading under which a claim's verdict stands: the study that asked, or that none did."""
    if claim["scope"] == "asked":
        return str(claim["study"] or "runs of no stored sweep")
    behind = claim["study"] or (
        "arms of several studies" if claim["scope"] == "across studies" else "runs of no stored sweep"
    )
    return f"{behind}, not asked"


def _claim_words(claim: Mapping[str, Any], several: bool) -> Row:
    """`joint_words`, and of the test that decided `effect_words`, `interval_words`, `n`; `tests` with their cells."""
    tests = [_test_words(claim, test) for test in claim["tests"]]
    deciding = [test for test in tests if test["verdict"] == claim["verdict"] and test["effect"] is not None]
    one = next(iter(deciding or tests), None)
    return {
        "tests": tests,
        "joint_words": claim["joint"]["verdict"] if several and claim["joint"] else "–",
        "effect_words": one["effect_words"] if one else "–",
        "interval_words": one["interval_words"] if one else "–",
        "n": one["n"] if one else "–",
    }


def _test_words(claim: Mapping[str, Any], test: Row) -> Row:
    """A test of a claim with what its table cells say; published effects are of a claim's first test."""
    unit = "%" if test["unit"] == "per cent" else "points"
    first = test["says"] == claim["tests"][0]["says"]
    published = [one for one in claim["published"] if one["effect"] is not None] if first else []
    interval = [signed(end, 2) for end in test["interval_95"] or ()]
    return {
        **test,
        "effect_words": "–" if test["effect"] is None else f"{signed(test['effect'], 2)} {unit}",
        "published_words": "; ".join(f"{signed(one['effect'], 2)} {unit} ({one['grade']})" for one in published) or "–",
        "margin_words": f"{show(test['margin'])} {unit}",
        "interval_words": " to ".join(interval) or "–",
        "where_words": ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in test["where"].items()),
        "arms_words": f"{', '.join(test['plus'])} − {', '.join(test['minus'])}",
    }


def signed(value: Any, digits: int = 4) -> str:
    """A number with its sign, a minus being a minus and no hyphen."""
    return "–" if show(value) == "-" else minus(f"{value:+.{digits}f}")


def minus(text: Any) -> str:
    """`text` with a minus sign before numbers where a hyphen stands for one."""
    return re.sub(r"(?<![\w.+\-\u2212])-(?=\.?\d)", "−", str(text))


def lines(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdicts for a terminal: a heading for each study where there are several, and for each claim its code and
    statement, the verdict with its numbers, and the reason."""
    groups = by_study(claims)
    out = [headline(claims)] if claims else []
    for group in groups:
        out += ["", f"{group['words']}:"] if len(groups) > 1 else [""]
        for claim in group["claims"]:
            numbers = f" ({claim['effect_words']}, 95 % {claim['interval_words']}, {claim['n']} pairs)"
            known = claim["interval_words"] != "–"
            joint = claim["joint"] and claim["joint"]["verdict"]
            beside = f"; all studies together: {joint}" if joint and joint != claim["verdict"] else ""
            out.append(f"{claim['id']}: {claim['statement']}")
            out.append(f"    {claim['verdict']}{numbers if known else ''}: {claim['reason']}{beside}".replace("−", "-"))
    return [*out, ""] if out else []
