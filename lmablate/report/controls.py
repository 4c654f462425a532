"""The controls of a report (``sweeps=controls``): whether what must differ differs, what must not does not, and order is all there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.console import folded
from lmablate.report.claim_tables import claim_cells, length_words
from lmablate.results.arms import is_missing, keys
from lmablate.schema.sweeps import stored_sweep

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
SWEEP = "controls"
SHUFFLED, FLOOR, UNIGRAM = "data.shuffle_tokens", "data.entropy_floor", "data.unigram_val_loss"
ROUNDING = 0.002  # of the floor: validation tokens are drawn without putting them back
LEARNT = 0.02  # above the unigram model, within which its frequencies count as learnt
CAME_OUT, FAILED, OPEN = "came out", "did not come out", "not decided"
OUTCOMES = {"supported": CAME_OUT, "contradicted": FAILED, "no difference": FAILED}


def controls(runs: pd.DataFrame, claims: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the controls among finished `runs`, each with its verdict; `claims` as from report_verdicts.verdicts.

    Each: study, control (a sentence), expected, measured, verdict (came out, did not come out, not decided), tokens_per_param."""
    out = []
    for claim in claims:
        if claim["scope"] == "asked" and stored_sweep(str(claim["study"])) == SWEEP:
            out += [_of_test(claim, test) for test in claim["tests"]]
    for study in sorted({str(name) for name in keys(runs, "sweep") if name and stored_sweep(str(name)) == SWEEP}):
        out += _of_shuffled(study, runs[[name == study for name in keys(runs, "sweep")]])
    return out


def _of_test(claim: Mapping[str, Any], test: Row) -> Row:
    cells = claim_cells(claim, test)
    side = {"equal": f"within {cells['margin_words']}", "higher": "a higher loss", "lower": "a lower loss"}
    known = test["interval_95"] is not None
    measured = f"{cells['effect_words']} ({cells['interval_words']}), {test['n']} pairs" if known else test["reason"]
    return {
        "study": claim["study"],
        "control": f"{test['says']} ({claim['id']})",
        "expected": side.get(test["direction"], test["direction"]),
        "measured": measured,
        "verdict": OUTCOMES.get(test["verdict"], OPEN),
        "tokens_per_param": test["tokens_per_param"],
    }


def _of_shuffled(study: str, runs: pd.DataFrame) -> list[Row]:
    """Return the control of a text without order: the loss ends at the unigram model's, and never below the frequencies' entropy."""
    if SHUFFLED not in runs:
        return []
    own = runs[[value is True for value in keys(runs, SHUFFLED)]]
    done = own[own["status"] == "completed"]
    if done.empty or is_missing(floor := float(done[FLOOR].min())):
        return []
    low, high, unigram = (
        float(value) for value in (done["val_loss"].min(), done["val_loss"].max(), done[UNIGRAM].max())
    )
    verdict = FAILED if low < floor * (1 - ROUNDING) else CAME_OUT if high < unigram * (1 + LEARNT) else OPEN
    return [
        {
            "study": study,
            "control": "Of tokens in random order only their frequencies are learned",
            "expected": f"not below their entropy, {floor:.4f}, and near a unigram model's {unigram:.4f} nats per token",
            "measured": f"{low:.4f} to {high:.4f}, {len(done)} run{'s' * (len(done) != 1)}",
            "verdict": verdict,
            "tokens_per_param": round(float(done["tokens_per_param"].min()), 2),
        }
    ]


def sentence(rows: Sequence[Row]) -> str:
    """Return how many of the controls came out."""
    if not rows:
        return ""
    n = sum(row["verdict"] == CAME_OUT for row in rows)
    if any(row["verdict"] == FAILED for row in rows):
        return f"{n} of {len(rows)} controls came out. Until the others do, no verdict of this size counts."
    return f"{n} of {len(rows)} controls came out." + (" The others are not decided." if n < len(rows) else "")


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the controls as lines for a terminal."""
    said = [
        f"    {row['verdict']}: {row['control']}; expected {row['expected']}; measured {row['measured']}, "
        f"{length_words(row['tokens_per_param'])} tokens per parameter".replace("−", "-")
        for row in rows
    ]
    return [*map(folded, [f"controls: {sentence(rows)}", *said]), ""] if rows else []
