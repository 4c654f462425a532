"""The state of a run while it trains, and what the loop shares with its callers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmablate.evaluate import Evaluation

Record = dict[str, Any]


class Interrupted(Exception):
    """A signal stopped the run; a checkpoint of its last whole step is on disk."""


@dataclass
class Progress:
    """The state of a run at a step. All of it goes into the checkpoint."""

    step: int = 0
    seconds: float = 0.0  # of training, evaluation not counted
    init_val_loss: float = math.nan
    evaluation: Evaluation = field(default_factory=lambda: Evaluation(math.nan, math.nan))
    diverged_at_step: int | None = None
    window_loss: float = 0.0  # sum over the steps since the last record
    window_norm: float = 0.0
    window_steps: int = 0

    def state(self) -> dict[str, Any]:
        return {**vars(self), "evaluation": list(self.evaluation)}

    def restore(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name])
        self.evaluation = Evaluation(*state["evaluation"])


class Trunk(Protocol):
    """The checkpoints a run leaves at the steps `points` for shorter runs, and may itself start from (runs/wsd_branches.py)."""

    folder: Path
    points: frozenset[int]
    end: int
    left_at: int | None

    def keep_history(self, step: int) -> None:
        """Store the records of this run up to `step` next to the checkpoint."""
