"""What the published studies say of each claim of the lecture: the reading that counts, the others, and the row of the figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from published import Study

from lmablate.claims.claim import Claim, load_claims
from lmablate.claims.verdict import GRAVITY
from lmablate.report.claim_tables import ORDER
from lmablate.schema.sweeps import stored_sweep

FIRST_TEXT = "sotu"  # every study is on it; another text is a second opinion
PER_CENT = "per cent"
SHORT, MEASURED, OPEN = "short run", "measured without training", "no verdict yet"
Row = dict[str, Any]


class Reading(NamedTuple):
    """What one study says of a claim on one text; `row` is the claim in its verdicts.json, with the `tests` on this text."""

    study: str
    text: str
    row: Row
    tests: list[Row]
    ladder: bool

    @property
    def test(self) -> Row | None:
        """Return the test that stands for the claim: the first with an effect."""
        return next((test for test in self.tests if test["effect"] is not None), None)


class Found(NamedTuple):
    """A claim with its readings, the one that counts first, and sentences of what was measured without training."""

    claim: Claim
    readings: list[Reading]
    measured: list[tuple[str, str]]

    @property
    def main(self) -> Reading | None:
        """Return the reading that counts: of a study that asked for the claim, of any ladder for a law of its baseline, or of all
        studies together for a statistic that no single one can give.

        What ladders show of a claim on one size stands beside it and does not count."""
        first = next((one for one in self.readings if one.ladder == (self.claim.evidence == "ladder")), None)
        together = first is not None and self.claim.sweep is None and bool(self.claim.statistics)
        return first if first and (first.row["scope"] == "asked" or self.claim.laws or together) else None

    @property
    def outcome(self) -> str:
        """Return the word under which the claim is counted."""
        if self.main is not None:
            return SHORT if self.main.row["short_run"] else str(self.main.row["verdict"])
        return MEASURED if self.measured else OPEN

    @property
    def published(self) -> list[Row]:
        """Return the published effects, which are of the claim's first test."""
        return [entry.model_dump() for entry in self.claim.published if entry.effect is not None]

    @property
    def comparable(self) -> bool:
        """Return whether the main effect and the published one are of the same test."""
        test = self.main.test if self.main else None
        return bool(test and self.published and test["says"] == self.claim.tests[0].says)


def found_claims(
    studies: Sequence[Study], across: Sequence[Row], measured: Mapping[str, list[tuple[str, str]]]
) -> list[Found]:
    """Return every claim of the lecture with what is published of it. `across`: claims that only several studies together touch."""
    readings: dict[str, list[Reading]] = {}
    for study in studies:
        stored = study.stored()
        for row in stored["claims"]:
            for one in _by_text(study.name, study.texts, row, ladder=bool(stored["ladders"])):
                readings.setdefault(row["id"], []).append(one)
    for row in across:
        readings.setdefault(row["id"], []).append(Reading("", "", row, row["tests"], ladder=False))
    claims = [claim for claim in load_claims().values() if claim.id not in controls()]
    return [
        Found(
            claim,
            sorted(readings.get(claim.id, []), key=lambda one, claim=claim: _rank(claim, one)),
            measured.get(claim.id, []),
        )  # type: ignore[misc]
        for claim in claims
    ]


def controls() -> set[str]:
    """Return the claims that are of the pipeline itself."""
    return {claim.id for claim in load_claims().values() if claim.group == "Controls"}


def _by_text(study: str, texts: Sequence[str], row: Row, *, ladder: bool) -> Iterable[Reading]:
    """Yield a reading for each text of a claim's tests. A claim without tests has none: its verdict says only that there is no test."""
    by_text: dict[str, list[Row]] = {}
    for test in row["tests"]:
        text = test["where"].get("text") or test["where"].get("data") or " and ".join(texts)
        by_text.setdefault(text, []).append(test)
    if not row["tests"] and row["ladder"]:
        by_text = {" and ".join(texts): []}
    for text, tests in by_text.items():
        yield Reading(study, text, row, tests, ladder)


def _rank(claim: Claim, one: Reading) -> tuple[Any, ...]:
    """Return the sorting key: requested before not, long before short, the claim's own sweep before others, one size before several
    (unless the claim asks for several), the first text before others."""
    return (
        one.row["scope"] != "asked", one.row["short_run"], stored_sweep(str(one.row["study"])) != claim.sweep,
        one.ladder != (claim.evidence == "ladder"), one.text != FIRST_TEXT, one.text, one.study,
    )  # fmt: skip


def others(main: Reading, readings: Sequence[Reading]) -> list[Reading]:
    """Return the first long reading of each other text, of studies that asked, at as many sizes as the main one."""
    out: dict[str, Reading] = {}
    for one in readings:
        alike = one.row["scope"] == "asked" and not one.row["short_run"] and one.ladder == main.ladder
        if alike and one.text != main.text:
            out.setdefault(one.text, one)
    return list(out.values())


def verdict_of(reading: Reading) -> str:
    """Return the verdict of a claim on the text of a reading: the gravest of its tests there."""
    if len({test["verdict"] for test in reading.row["tests"]}) <= 1 or len(reading.tests) == len(reading.row["tests"]):
        return str(reading.row["verdict"])
    return str(min((test["verdict"] for test in reading.tests), key=GRAVITY.index))


def figure_rows(found: Sequence[Found]) -> list[Row]:
    """Return the rows of the summary figure: every claim with an effect in per cent, measured or published, by group."""
    rows = [row for one in found if (row := _figure_row(one)) is not None]
    order = list(dict.fromkeys(row["group"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["group"]))


def _figure_row(one: Found) -> Row | None:
    long = [one.main, *others(one.main, one.readings)] if one.main and one.outcome != SHORT else []
    points = [(reading.text, test) for reading in long if (test := reading.test) and test["unit"] == PER_CENT]
    says, margin = (points[0][1]["says"], points[0][1]["margin"]) if points else _first(one.claim)
    published = one.published if one.comparable or not points else []
    if not points and not (published and one.claim.tests):
        return None
    return {
        "group": one.claim.group, "id": one.claim.id, "says": says, "margin": margin or 0.0,
        "verdict": one.outcome if one.outcome in ORDER else None,
        "ours": [_point(text, test) for text, test in points],
        "published": [{"effect": entry["effect"], "params": entry["params"]} for entry in published],
    }  # fmt: skip


def _first(claim: Claim) -> tuple[str, float]:
    return (claim.tests[0].says, claim.tests[0].margin) if claim.tests else (claim.statement, 0.0)


def _point(text: str, test: Row) -> Row:
    return {
        "text": text, "verdict": test["verdict"], "effect": test["effect"], "interval": test["interval_95"], "pairs": test["n"],
    }  # fmt: skip
