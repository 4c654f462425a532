"""status.json of a run: what a sweep's display reads, and how old it is whatever the clocks do.

A heartbeat decides nothing (locks.py does), so that neither a wall clock that jumps nor two machines whose clocks differ can
make a living run look dead.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
SHOWN = ("step", "seconds", "train_loss", "val_loss", "val_accuracy", "tokens_per_second")


def now() -> dict[str, Any]:
    """The time in three ways: of the wall, and since which boot of which machine, which never jumps."""
    return {"time": time.time(), "boot": _boot(), "uptime": _uptime()}


def age(status: Mapping[str, Any]) -> float | None:
    """Seconds since a status was written: exact on the machine that wrote it, elsewhere as far as both wall clocks agree."""
    there, boot, wall = status.get("uptime"), status.get("boot"), status.get("time")
    if boot is not None and boot == _boot() and _number(there):
        return max(0.0, _uptime() - float(there))  # type: ignore[arg-type]
    return max(0.0, time.time() - float(wall)) if _number(wall) else None  # type: ignore[arg-type]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)


@cache
def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _uptime() -> float:
    """Seconds since boot, sleep counted where the system can."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
            self.directory.write_status({**self.state, **now()})
        except OSError as error:
            if not self._told:
                log.warning("%s: no heartbeat (%s)", self.directory.status_path, error.strerror or error)
            self._told = True
        self.on_status(dict(self.state))
