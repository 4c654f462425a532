"""Write the progress file of a run (status.json), which a sweep's display reads, and tell its age.

No decision rests on it: locks.py tells whether a run is at work, independent of clocks. Only on a file system without
locks does ``status`` take a recent heartbeat as a sign of work.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
SHOWN = ("step", "seconds", "train_loss", "val_loss", "val_accuracy", "tokens_per_second")


def age(directory: RunDirectory) -> float | None:
    """Return the seconds since the progress file of a run was written, or None if there is none. The file's
    modification time counts, so that the clock of the writing process does not matter."""
    try:
        return max(0.0, time.time() - directory.status_path.stat().st_mtime)
    except OSError:
        return None


class Heartbeat:
    """The writer of status.json, once after every record. A failed write costs the display, and not the run.

    Besides the numbers of the last record (SHOWN) it holds: `from`, the step at which this attempt began; `doing`, a
    message while the run does something else than training; `val_step`, the step of the validation loss;
    `evaluation_seconds`, the duration of the evaluation before the first step.
    """

    def __init__(self, directory: RunDirectory, cfg: RunConfig, on_status: Callable[[dict[str, Any]], None]) -> None:
        self.directory, self.on_status = directory, on_status
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "host": platform.node(), "step": 0}
        self.state["steps"] = cfg.trainer.steps
        self._told = False
        self._began: float | None = None  # the evaluation before the first step
        self._write()

    def begin(self, step: int | None) -> None:
        """Record the step that training resumes from, or None for a fresh run, which begins with an evaluation."""
        self.state |= {"step": step or 0, "from": step or 0}
        self.state.pop("doing", None)
        self._began = time.monotonic() if step is None else None
        self._write()

    def doing(self, message: str) -> None:
        """Show a message about a slow activity until the next record."""
        self.state["doing"] = message
        self._write()

    def beat(self, record: dict[str, Any]) -> None:
        """Write the numbers of one record."""
        self.state |= {key: record[key] for key in SHOWN if key in record}
        self.state.pop("doing", None)
        if "val_loss" in record:
            self.state["val_step"] = record["step"]
            if self._began is not None:
                self.state["evaluation_seconds"] = time.monotonic() - self._began
        self._began = None
        self._write()

    def end(self, status: str) -> None:
        """Write the final status of the run."""
        self.state["state"] = status
        self.state.pop("doing", None)
        self._write()

    def _write(self) -> None:
        try:
            self.directory.write_status(self.state)
        except OSError as error:
            if not self._told:
                log.warning("%s: no heartbeat (%s)", self.directory.status_path, error.strerror or error)
            self._told = True
        self.on_status(dict(self.state))
