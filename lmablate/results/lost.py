"""Whether a run is lost: it diverged, or it learned nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmablate.results.arms import is_missing

LEARNT = 0.01  # of a unigram model's loss, by which a run has to end below it


LOST_COLUMNS = (
    "status",
    "val_loss",
    "data.unigram_val_loss",
    "data.shuffle_tokens",
    "objective.kind",
)  # all that is_lost reads


def is_lost(row: Mapping[Any, Any]) -> bool:
    """Return whether a run diverged, or learned nothing: its loss on a text ends within 1 % of a unigram model's.

    A post-norm stack can fall to that loss in its first steps and stay there, with finite losses all the time. On a text of
    shuffled tokens there is nothing else to learn."""
    if row["status"] == "diverged":
        return True
    unigram, loss = row.get("data.unigram_val_loss"), row["val_loss"]
    shuffled, objective = row.get("data.shuffle_tokens"), row.get("objective.kind")
    if is_missing(unigram) or is_missing(loss) or not (is_missing(shuffled) or not shuffled):
        return False
    return (is_missing(objective) or objective == "causal") and float(loss) > (1 - LEARNT) * float(unigram)  # type: ignore[arg-type]
