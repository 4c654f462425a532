"""The claims of the lecture counted: by outcome, by agreement with the published effects, and over two texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lecture_claims import MEASURED, OPEN, PER_CENT, SHORT, Found, controls, others, verdict_of

from lmablate.report.claim_tables import DECIDED, ORDER

MOST_MORE = 8  # seeds that a study adds where they decide a claim
WORDS = {"not testable at this scale": "out of reach at this scale"}
Row = dict[str, Any]


def counts(found: Iterable[Found]) -> Counter[str]:
    """Return how many claims have each outcome."""
    return Counter(one.outcome for one in found)


def count_rows(found: Sequence[Found]) -> list[tuple[str, str, str]]:
    """Return the counts as rows: outcome, of all claims, and of those of priority 1 and 2."""
    every, first = counts(found), counts([one for one in found if one.claim.priority <= 2])
    rows = [(WORDS.get(word, word), str(every[word]), str(first[word])) for word in (*ORDER, MEASURED, OPEN)]
    if every[SHORT]:
        rows.insert(len(ORDER), ("only short runs, which do not count", str(every[SHORT]), str(first[SHORT])))
    return [*rows, ("all", str(every.total()), str(first.total()))]


def sentence(found: Sequence[Found]) -> str:
    """Return the counts in one sentence."""
    every = counts(found)
    said = [f"{every[word]} {WORDS.get(word, word)}" for word in ORDER if every[word]]
    rest = f"{every.total() - sum(every[word] for word in ORDER)} have no verdict yet"
    return (
        f"Of {every.total()} claims, {', '.join(said)}; {rest}."
        if said
        else f"Of {every.total()} claims none has a verdict yet."
    )


def far_from_decided(found: Sequence[Found]) -> str:
    """Return how many undecided claims a power calculation puts out of a study's reach, and how many are settled by now; empty if
    none is undecided."""
    undecided = [one for one in found if one.outcome == "not decided"]
    if not undecided:
        return ""
    far = sum(map(_is_far, undecided))
    first = [one for one in found if one.claim.priority <= 2]
    settled = sum(one.outcome in (*DECIDED, MEASURED) or _is_far(one) for one in first)
    return (
        f"A power calculation puts {far} of the {len(undecided)} that are not decided out of reach: {MOST_MORE} more seeds would not be "
        f"enough at the spread that was seen. Of the {len(first)} claims of priority 1 and 2, {settled} are decided, measured without "
        "training, or out of reach in this sense."
    )


def _is_far(one: Found) -> bool:
    """Return True if a test of an undecided claim has a spread, and would need more seeds than a study adds."""
    tests = one.main.row["tests"] if one.main and one.outcome == "not decided" else []
    known = [
        test
        for test in tests
        if test["verdict"] == "not decided" and test["sd"] and not any(lost for lost, _ in test["diverged"].values())
    ]
    return any(test["more_seeds"] is None or test["more_seeds"] > MOST_MORE for test in known)


def corrected_together(joint: Sequence[Row]) -> str:
    """Return how many decided verdicts stay when the tests of all studies are corrected together; empty for one study."""
    decided = [row for row in joint if row["verdict"] in DECIDED and row["id"] not in controls()]
    lost = [row for row in decided if row["joint"] != row["verdict"]]
    if len({row["study"] for row in joint}) < 2 or not decided:
        return ""
    named = ", ".join(f"{row['id']} ({row['study']})" for row in lost)
    return (
        f"With the tests of all studies corrected together, {len(decided) - len(lost)} of {len(decided)} decided verdicts stay"
        + (f"; not {named}." if lost else ".")
    )


def agreement(found: Iterable[Found]) -> str:
    """Return how many effects have the sign of the published one, and how many of those that are told from 0."""
    both = [
        (one.main.test, one.published[0]["effect"])
        for one in found
        if one.main and one.outcome != SHORT and one.comparable
    ]
    same = [test for test, effect in both if test and (test["effect"] > 0) == (effect > 0)]
    clear = [test for test, _ in both if test and _is_clear(test)]
    if not both:
        return "No claim has a measured and a published effect yet."
    return (
        f"Of {len(both)} effects whose published size is known, {len(same)} have the published sign; of the {len(clear)} whose interval "
        f"leaves out 0, {len([test for test in same if _is_clear(test)])}."
    )


def second_texts(found: Iterable[Found]) -> str:
    """Return how many claims have the same verdict on a second text; empty if none was tested on two."""
    pairs = [(one.main, other) for one in found if one.main for other in others(one.main, one.readings)]
    if not pairs:
        return ""
    same = sum(verdict_of(a) == verdict_of(b) for a, b in pairs)
    signs = [a.test["effect"] * b.test["effect"] > 0 for a, b in pairs if a.test and b.test]
    many = "1 claim was" if len(pairs) == 1 else f"{len(pairs)} claims were"
    return f"{many} also tested on another text: {same} with the same verdict, {sum(signs)} of {len(signs)} effects with the same sign."


def other_units(found: Iterable[Found]) -> str:
    """Return which claims are measured in another unit than per cent, and so are not in the figure; empty if none is."""
    tests = [(one.claim.id, one.main.test) for one in found if one.main and one.main.test]
    names = [f"{name} ({test['unit']})" for name, test in tests if test["unit"] != PER_CENT]
    return f"Measured in another unit, and so not in the figure: {', '.join(names)}." if names else ""


def _is_clear(test: Row) -> bool:
    return bool(test["interval_95"]) and test["interval_95"][0] * test["interval_95"][1] > 0
