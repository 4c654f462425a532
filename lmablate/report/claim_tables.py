"""The claims of a report: a headline, the claims by study, and the cells of their tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lmablate.claims.evidence import SHORT
from lmablate.core.console import folded
from lmablate.results.arms import is_missing, show

Row = dict[str, Any]
ORDER = ("supported", "contradicted", "no difference", "not decided", "not testable at this scale")
DECIDED = ORDER[:3]
NAMED = 6  # most claims named in a sentence
SIGNS = {"per cent": "%", "percentage points": "points"}  # of effects; other units are those of statistics
ANSWERED = 3  # most claims that the page answers in a sentence each


def headline(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return a few sentences on the verdicts.

    They give the number of claims by verdict, what changes when all studies are corrected together, and the number of verdicts
    that no study requested."""
    requested = [claim for claim in claims if claim["scope"] == "asked"]
    studies = {claim["study"] for claim in requested}
    counted = requested or claims
    short = [claim for claim in counted if claim["short_run"]]
    long = [claim for claim in counted if not claim["short_run"]]
    sentences = [_tally(long)] if long else []
    if short:
        is_one = len(short) == 1
        sentences.append(
            f"{len(short)} {'verdict rests' if is_one else 'verdicts rest'} on short runs, of less than {SHORT:g} tokens per "
            f"parameter, and {'is' if is_one else 'are'} not counted."
        )
    if len(studies) > 1:
        moved = [claim for claim in requested if claim["joint"]["verdict"] != claim["verdict"]]
        family = max((test["joint"]["family"] or 0 for claim in requested for test in claim["tests"]), default=0)
        what = f"all {family} tests of the {len(studies)} studies corrected together"
        named = ", ".join(f"{claim['id']} ({claim['study']}) is {claim['joint']['verdict']}" for claim in moved[:NAMED])
        more = f" and {len(moved) - NAMED} more change" if len(moved) > NAMED else ""
        sentences.append(f"With {what}, {named}{more}." if moved else f"With {what}, no verdict changes.")
    if requested and (rest := len(claims) - len(requested)):
        sentences.append(f"{rest} more {'is' if rest == 1 else 'are'} judged that these studies did not ask for.")
    return " ".join(sentences)


def answers(groups: Sequence[Row]) -> list[Row]:
    """Return the claims, from by_study, that studies asked for, decided ones first; none if they are too many for a sentence each."""
    claims = [claim for group in groups if group["asked"] for claim in group["claims"]]
    return sorted(claims, key=lambda claim: ORDER.index(claim["verdict"])) if len(claims) <= ANSWERED else []


def _tally(claims: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [claim["verdict"] for claim in claims]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ORDER if verdict in verdicts)
    return f"Of {len(claims)} claims: {counts}." if len(claims) > 1 else f"One claim: {counts.removeprefix('1 ')}."


def by_study(claims: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the claims grouped by the study that requested them, then those that none did.

    Each group has `name` (a stored sweep, or None), `words` (its heading), `asked` (True if requested), and `claims` with their
    table cells."""
    groups: dict[str, Row] = {}
    several = len({claim["study"] for claim in claims if claim["scope"] == "asked"}) > 1
    for claim in claims:
        heading, requested = group_heading(claim), claim["scope"] == "asked"
        group = groups.setdefault(heading, {"name": claim["study"], "words": heading, "asked": requested, "claims": []})
        group["claims"].append({**claim, **_claim_cells(claim, several)})
    return list(groups.values())


def group_heading(claim: Mapping[str, Any]) -> str:
    """Return the heading of a claim's verdict: the study that requested it, or that none did."""
    if claim["scope"] == "asked":
        return str(claim["study"] or "runs of no stored sweep")
    behind = claim["study"] or (
        "arms of several studies" if claim["scope"] == "across studies" else "runs of no stored sweep"
    )
    return f"{behind}, not asked"


def _claim_cells(claim: Mapping[str, Any], several: bool) -> Row:
    """Return `joint_words`, the cells of the deciding test (`effect_words`, `interval_words`, `n`), and `tests` with cells."""
    tests = [claim_cells(claim, test) for test in claim["tests"]]
    deciding = [test for test in tests if test["verdict"] == claim["verdict"] and test["effect"] is not None]
    one = next(iter(deciding or tests), None)
    return {
        "tests": tests,
        "verdict_words": _verdict_words(claim),
        "length_words": length_words(claim["tokens_per_param"]),
        "joint_words": claim["joint"]["verdict"] if several and claim["joint"] else "–",
        "effect_words": one["effect_words"] if one else "–",
        "interval_words": one["interval_words"] if one else "–",
        "n": one["n"] if one else "–",
        "is_contrast": one is not None and one["unit"] in SIGNS,
    }


def claim_cells(claim: Mapping[str, Any], test: Row) -> Row:
    """Return a test of a claim with its table cells. Published effects belong to a claim's first test."""
    unit = SIGNS.get(test["unit"], "")
    number = partial(signed, digits=2) if unit else plain
    first = test["says"] == claim["tests"][0]["says"]
    published = [one for one in claim["published"] if one["effect"] is not None] if first else []
    interval = [number(end) for end in test["interval_95"] or ()]
    return {
        **test,
        "verdict_words": _verdict_words(test),
        "length_words": length_words(test["tokens_per_param"]),
        "effect_words": "–" if test["effect"] is None else f"{number(test['effect'])} {unit}".rstrip(),
        "published_words": "; ".join(f"{signed(one['effect'], 2)} {unit} ({one['grade']})" for one in published) or "–",
        "margin_words": "–" if test["margin"] is None else f"{show(test['margin'])} {unit}",
        "interval_words": " to ".join(interval) or "–",
        "where_words": ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in test["where"].items()),
        "arms_words": f"{', '.join(test['plus'])} − {', '.join(test['minus'])}" if test["plus"] else test["unit"],
    }


def _verdict_words(row: Row | Mapping[str, Any]) -> str:
    return str(row["verdict"]) + (", short run" if row["short_run"] else "")


def length_words(tokens_per_param: Any) -> str:
    """Return training tokens per parameter with three digits: ``20``, ``4.13``."""
    return "–" if is_missing(tokens_per_param) else f"{tokens_per_param:.3g}"


def signed(value: Any, digits: int = 4) -> str:
    """Return a number with its sign, with a minus sign instead of a hyphen."""
    return "–" if show(value) == "-" else minus(f"{value:+.{digits}f}")


def plain(value: Any) -> str:
    """Return a number of a statistic with three digits and a minus sign instead of a hyphen."""
    return minus(f"{value:.3g}")


def minus(text: Any) -> str:
    """Return `text` with a minus sign instead of a hyphen in front of numbers."""
    return re.sub(r"(?<![\w.+\-\u2212])-(?=\.?\d)", "−", str(text))


def lines(claims: Sequence[Mapping[str, Any]], *, everything: bool = True) -> list[str]:
    """Return the verdicts as lines for a terminal: of the claims that studies asked for, or with `everything` of all.

    Each study has a heading if there are several. A claim has its code and statement, the verdict with its numbers, and the reason.
    """
    groups = by_study(claims)
    if not everything and any(group["asked"] for group in groups):
        groups = [group for group in groups if group["asked"]]
    out = [folded(headline(claims), 0)] if claims else []
    for group in groups:
        out += ["", f"{group['words']}:"] if len(groups) > 1 else [""]
        for claim in group["claims"]:
            length = claim["length_words"]
            numbers = f" ({claim['effect_words']}, 95 % {claim['interval_words']}, {claim['n']} pairs" + (
                f", {length} tokens per parameter)" if length != "–" else ")"
            )
            known = claim["interval_words"] != "–" and claim["is_contrast"]
            joint = claim["joint"] and claim["joint"]["verdict"]
            joint_note = f"; all studies together: {joint}" if joint and joint != claim["verdict"] else ""
            verdict = f"    {claim['verdict_words']}{numbers if known else ''}: {claim['reason']}{joint_note}"
            out += [folded(f"{claim['id']}: {claim['statement']}"), folded(verdict.replace("−", "-"))]
    return [*out, ""] if out else []
