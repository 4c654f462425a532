"""The page of the lecture: counts and figure, then every claim with its verdict, effects, trend and the published effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lecture_claims import PER_CENT, SHORT, Found, Reading, verdict_of
from lecture_counts import (
    agreement,
    corrected_together,
    count_rows,
    far_from_decided,
    other_units,
    second_texts,
    sentence,
)
from lecture_halves import halves_rate, halves_sentence
from published import SENTENCES, Study

from lmablate.analysis._style import count
from lmablate.claims.claim import Claim
from lmablate.core.console import markdown_table
from lmablate.report.claim_tables import length_words, minus, signed
from lmablate.report.controls import sentence as controls_sentence
from lmablate.scaling.forecast import calibration
from lmablate.scaling.ladder_summary import forecast_text

Row = dict[str, Any]
# No line begins with a marker that has words behind it: Markdown would take the whole line for HTML.
BEGIN, END = "<!-- made by python tools/lecture.py -->", "<!-- end -->"
HEAD = """# The lecture, claim by claim

The lecture is lecture 3 of Stanford's CS336, on architectures. This page has each of its claims: what came out here, and what was
published. All results are of small models (`scale=laptop`), and a verdict is about that scale.

![Every claim with an effect: measured against published](figures/lecture.png)

{counts}

{sentences}

A verdict that rests on less than 5 tokens per parameter is a short run, and does not count. A claim counts once: by the study made
for it, on the State of the Union addresses. Controls are no claims of the lecture, and stand in no count.

## All claims

Effects are in per cent with their 95 % intervals, unless a unit is given. n is the number of paired seeds; per parameter: training tokens
for each non-embedding parameter. From small to large: what an arm is worth as compute (1.2x: the baseline needs 1.2 times as much), on a
[ladder](guides/ladders.md). [Reading a verdict](guides/verdicts.md) explains the rest. [What published systems
do](results/survey/README.md) judges the lecture's tables of systems. [All runs](results/runs.md) are one table.
`python tools/lecture.py docs/results --out docs/lecture.md` writes this page.

"""
COLUMNS = ("page", "claim", "verdict", "measured", "from small to large", "published")


def page(found: Sequence[Found], studies: Sequence[Study], joint: Sequence[Row]) -> str:
    """Return the whole page; `joint`: the verdicts of all studies corrected together."""
    table = [_row(one, studies) for one in sorted(found, key=lambda one: _order(one.claim))]
    counted = markdown_table(("outcome", "claims", "of priority 1 and 2"), count_rows(found))
    sentences = [
        far_from_decided(found),
        corrected_together(joint),
        agreement(found),
        second_texts(found),
        other_units(found),
        _controls(studies),
        halves_sentence(halves_rate(studies)),
        _forecasts(studies),
    ]
    head = HEAD.format(counts=counted, sentences="\n".join(f"- {one}" for one in sentences if one))
    return head + markdown_table(COLUMNS, table) + "\n"


def line(found: Sequence[Found]) -> str:
    """Return the sentence that opens README and documentation."""
    return f"{sentence(found)} [The lecture, claim by claim](docs/lecture.md) has each."


def results_table(studies: Sequence[Study]) -> str:
    """Return the table of the published studies for docs/results.md, with what each found."""
    rows = []
    for one in studies:
        cells = (f"[{one.name}](results/{one.name}/README.md)", ", ".join(one.texts), str(len(one.archive.rows)))
        rows.append((*cells, one.sentences().get(SENTENCES[0], "")))
    return markdown_table(("study", "text", "runs", "what it found"), rows)


def renewed(document: str, content: str, *, inline: bool = False) -> str:
    """Return `document` with what stands between its markers replaced; unchanged without markers."""
    between = content if inline else f"\n{content}\n"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}{between}{END}", document, flags=re.S)


def _order(claim: Claim) -> tuple[int, int, str]:
    """Return the sort key: pages of the notes first, then slides, then claims without a page."""
    pages = claim.pages or ""
    number = re.search(r"\d+", pages)
    kind = 0 if "notes p" in pages else 1 if number else 2
    first = re.search(r"notes p(\d+)", pages) or number
    return kind, int(first[0].removeprefix("notes p")) if first else 0, claim.id


def _row(one: Found, studies: Sequence[Study]) -> tuple[str, ...]:
    claim = one.claim
    cells = (
        claim.pages or "method",
        f"**{claim.id}** {claim.statement}",
        _verdict(one),
        "<br>".join(_measured(one)) or "–",
        "<br>".join(filter(None, (_trend(reading, studies) for reading in one.readings if reading.ladder))) or "–",
        "<br>".join(_published(claim, entry) for entry in one.published) or claim.expected,
    )
    return tuple(" ".join(cell.replace("|", "\\|").split()) for cell in cells)


def _verdict(one: Found) -> str:
    if one.main is not None:
        word = f"**{one.main.row['verdict']}**" + (f", {SHORT}" if one.main.row["short_run"] else "")
        return f"{word}: {minus(one.main.row['reason'])}"
    if one.measured:
        return "measured without training"
    planned = f"not run yet: `sweeps={one.claim.sweep} scale=laptop`" if one.claim.sweep else "no run of it is stored"
    return one.claim.untested or planned


def _measured(one: Found) -> list[str]:
    """Return a line for each test of each reading at one size, under the study, text and verdict of the reading."""
    out = []
    for reading in (each for each in one.readings if not each.ladder):
        where = f"[{reading.study}](results/{reading.study}/README.md)" if reading.study else "several studies"
        scope = ", not asked" if reading.row["scope"] == "not asked" else ""
        said = "" if reading is one.main else f", {verdict_of(reading)}" + (f", {SHORT}" * reading.row["short_run"])
        head = f"{where}{f', {reading.text}' if reading.text else ''}{scope}{said}"
        effects = [_effect(test) for test in reading.tests if test["effect"] is not None]
        if effects or reading is one.main:
            out.append(f"{head}: {'; '.join(effects) or 'no effect'}")
    return out + [f"[measured](results/{name}/README.md): {words}" for name, words in one.measured]


def _effect(test: Mapping[str, Any]) -> str:
    unit = " %" if test["unit"] == PER_CENT else f" {test['unit']}"
    ends = test["interval_95"]
    between = f" [{signed(ends[0], 2)}, {signed(ends[1], 2)}]" if ends else ""
    where = "".join(f", {key} {value}" for key, value in test["where"].items() if key not in ("text", "data"))
    if (rest := test["finished"]) is not None:
        between += f", {signed(rest['effect'], 2)}{unit} over the {rest['n']} pairs without a lost run"
    length = test.get("tokens_per_param")
    per = f", {length_words(length)} per parameter" if length is not None else ""
    return f"{signed(test['effect'], 2)}{unit}{between}, n {test['n']}{per}{where}"


def _trend(reading: Reading, studies: Sequence[Study]) -> str:
    """Return what a ladder shows of a claim; of one that claims no direction, what becomes of each arm; empty without an effect."""
    stored = next(one.stored() for one in studies if one.name == reading.study)
    ladder = reading.row["ladder"]
    if ladder:
        forecasts = [row for row in stored["forecasts"] if row["arm"] == ladder["arm"]]
        said = "".join([ladder["reason"], *(f"; forecast at {row['rung']}: {forecast_text(row)}" for row in forecasts)])
    elif reading.test:
        said = "; ".join(f"{one['arm']}: {one['words']}" for found in stored["ladders"] for one in found["effects"])
    else:
        return ""
    return minus(f"[{reading.study}](results/{reading.study}/README.md), {reading.text}: {said}")


def _published(claim: Claim, entry: Mapping[str, Any]) -> str:
    unit = "points" if claim.tests and claim.tests[0].metric == "diverged" else "%"
    at = f" at {count(entry['params'])}" if entry["params"] else ""
    return f"{signed(entry['effect'], 2)} {unit}{at} ({entry['source'].partition(',')[0]}, {entry['grade']})"


def _controls(studies: Sequence[Study]) -> str:
    return controls_sentence([row for one in studies for row in one.stored()["controls"]])


def _forecasts(studies: Sequence[Study]) -> str:
    words = calibration(row for one in studies for row in one.stored()["forecasts"])["words"]
    return f"Of ladders: {words}." if any(one.stored()["ladders"] for one in studies) else ""
