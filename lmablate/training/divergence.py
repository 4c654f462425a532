"""The rule by which a run counts as diverged."""

from __future__ import annotations

import math
from typing import Any


class DivergenceDetector:
    """A detector of a loss or gradient norm that is not finite, or of a smoothed loss above `initial_loss` for `patience` steps in a
    row.

    The smoothed loss is the exponential moving average ``m <- s m + (1 - s) loss`` with ``s = smoothing``, starting at the first loss.
    It sees every step in order, so the result does not depend on how often a run logs.
    """

    def __init__(self, *, initial_loss: float, smoothing: float, patience: int) -> None:
        self.initial_loss, self.smoothing, self.patience = initial_loss, smoothing, patience
        self.average: float | None = None
        self.above = 0

    def diverged(self, loss: float, grad_norm: float) -> bool:
        """Add one step; return True if the run has diverged at it."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return True
        self.average = loss if self.average is None else self.smoothing * self.average + (1 - self.smoothing) * loss
        self.above = self.above + 1 if self.average > self.initial_loss else 0
        return self.above >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"initial_loss": self.initial_loss, "average": self.average, "above": self.above}

    def restore(self, state: dict[str, Any]) -> None:
        self.initial_loss, self.average, self.above = state["initial_loss"], state["average"], state["above"]
