"""Estimate the remaining time of a command from the heartbeats of its runs (progress_file.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

Status = Mapping[str, Any]


@dataclass
class Todo:
    """A run of the command. `work` is its share of the whole (any unit), `status` its last heartbeat, empty before the first."""

    cfg: RunConfig
    work: float
    status: Status
    ended: bool = False
    _whole: float | None = None

    def end(self) -> None:
        """Mark the run as ended. Its duration still serves to estimate others."""
        if not self.ended:
            self._whole = run_left(self.cfg, self.status, step=0)
            self.ended = True

    @property
    def whole(self) -> float | None:
        """Return the seconds of the whole run, or None before its first steps were timed."""
        return self._whole if self._whole is not None else run_left(self.cfg, self.status, step=0)


def evaluations_left(cfg: RunConfig, step: int) -> int:
    """Return how many evaluations a run makes after `step`."""
    steps = cfg.trainer.steps
    n = min(cfg.runtime.evaluations, steps)
    return sum(round(i * steps / n) > step for i in range(1, n + 1))


def run_left(cfg: RunConfig, status: Status, *, step: int | None = None) -> float | None:
    """Return the remaining seconds of a run from its last step (or from `step`), or None before its first steps were
    timed. These are the steps at the mean speed so far, and the evaluations to come."""
    reached = status.get("step") or 0
    if not reached or not status.get("seconds"):
        return None
    at = reached if step is None else step
    training = (cfg.trainer.steps - at) * status["seconds"] / reached
    return training + evaluations_left(cfg, at) * (status.get("evaluation_seconds") or 0.0)


def time_left(todo: Sequence[Todo]) -> float | None:
    """Return the seconds until all runs have ended, or None before anything is known. Runs that have not begun take as
    long as the others for their work. As many as are training now share the rest."""
    waiting = [one for one in todo if not one.ended]
    at_work = [(one, left) for one in waiting if (left := run_left(one.cfg, one.status)) is not None]
    known = [(seconds, one.work) for one in todo if (seconds := one.whole) is not None]
    if not known:
        return None
    rate = sum(seconds for seconds, _ in known) / max(1e-9, sum(work for _, work in known))
    begun = {id(one) for one, _ in at_work}
    rest = sum(rate * one.work for one in waiting if id(one) not in begun)
    together = max(1, len(at_work))
    longest = max((left for _, left in at_work), default=0.0)
    return max(longest, (rest + sum(left for _, left in at_work)) / together)
