"""status.json of a run: what a sweep's display reads, and how old it is.

A heartbeat decides nothing: locks.py says whether a run is at work, whatever the clocks do. Only where a file system has no
locks does ``status`` take a young heartbeat for a run at work.
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
    """Return the seconds since the heartbeat of a run was written; None where there is none.

    The file's own time counts, so that no clock of the process that writes does.
    """
    try:
        return max(0.0, time.time() - directory.status_path.stat().st_mtime)
    except OSError:
        return None


class Heartbeat:
    """Writes status.json after every record. One that cannot be written costs the display, and not the run.

    Beside the numbers of the last record (SHOWN): `from`, the step that this attempt began at; `doing`, in words, while the run
    is at something else than training; `val_step`, the step that the validation loss is of; and `evaluation_seconds`, how long
    the evaluation before the first step took.
    """

    def __init__(self, directory: RunDirectory, cfg: RunConfig, on_status: Callable[[dict[str, Any]], None]) -> None:
        self.directory, self.on_status = directory, on_status
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "host": platform.node(), "step": 0}
        self.state["steps"] = cfg.trainer.steps
        self._told = False
        self._began: float | None = None  # the evaluation before the first step
        self._write()

    def begin(self, step: int | None) -> None:
        """The run goes on from `step`; None: it begins, with an evaluation."""
        self.state |= {"step": step or 0, "from": step or 0}
        self.state.pop("doing", None)
        self._began = time.monotonic() if step is None else None
        self._write()

    def doing(self, what: str) -> None:
        """Say in words what takes its time; the next record ends it."""
        self.state["doing"] = what
        self._write()

    def beat(self, record: dict[str, Any]) -> None:
        self.state |= {key: record[key] for key in SHOWN if key in record}
        self.state.pop("doing", None)
        if "val_loss" in record:
            self.state["val_step"] = record["step"]
            if self._began is not None:
                self.state["evaluation_seconds"] = time.monotonic() - self._began
        self._began = None
        self._write()

    def end(self, status: str) -> None:
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
