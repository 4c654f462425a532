"""Determine the outcome of jobs that run on an engine, and whether they are started again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmablate.launcher.task import NO_FOLDER
from lmablate.runs.recovery import HELD

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job

log = logging.getLogger(__name__)
GRACE_SECONDS = 3.0  # for the last writes of a run to arrive through a shared file system
SHARE = (
    "the folder of the run is not there on the machine that was to train it: put results_dir, the current folder and "
    "LMABLATE_CACHE on a file system that all machines share"
)


class Retries:
    """A count of how often each run was started again after its worker was lost."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used: Counter[str] = Counter()

    def use(self, jobs: Sequence[Job]) -> bool:
        """Use one retry for these jobs. Returns False if none is left."""
        name = jobs[0].run_id
        self.used[name] += 1
        return self.used[name] <= self.limit


class RemoteProcess:
    """A job on an engine. Its outcome is read from the run's folder; the engine only reports that it has ended. `ended`
    returns None while the job lives or waits, then an exit code or a message of the engine."""

    pid = 0  # no process on this machine

    def __init__(
        self,
        jobs: Sequence[Job],
        retries: Retries,
        ended: Callable[[], int | str | None],
        send: Callable[[int], None],
    ) -> None:
        self.jobs, self.retries = list(jobs), retries
        self._ended, self._send = ended, send
        self._seen: float | None = None
        self.lost = False
        self.code: int | None = None

    @property
    def waits_for_graph(self) -> bool:
        """Return whether it is still in the engine's queue, so that its time limit does not run."""
        return self.code is None and self.jobs[0].directory.read_status().get("state") == "starting"

    def send(self, number: int) -> None:
        """Request a stop. Engines have one way only, whatever the signal."""
        if self.code is None:
            self._send(number)

    def poll(self) -> int | None:
        """Return 0 for done, 1 for failed, 143 for stopped; sets `lost` if the job is to be started again."""
        if self.code is None and (ended := self._ended()) is not None:
            self._seen = self._seen or time.monotonic()
            self.code = self._judge(ended, waited=time.monotonic() - self._seen >= GRACE_SECONDS)
        return self.code

    def _judge(self, ended: int | str, *, waited: bool) -> int | None:
        left = [job for job in self.jobs if not job.done]
        if not left:
            return 0
        status = left[0].directory.read_status()
        if ended == HELD:
            return HELD
        if ended == NO_FOLDER:
            return self._failed(left, SHARE)
        if status.get("state") == "failed" and not status.get("killed"):
            return 1
        if not waited:
            return None
        if self.retries.use(left):
            why = status.get("error") or (ended if isinstance(ended, str) else "its worker ended")
            log.warning("%s (%s): %s; it goes on from its checkpoint", left[0].label, left[0].run_id, why)
            self.lost = True
            return 143
        if status.get("state") == "stopped":
            return 143
        return self._failed(
            left, str(status.get("error") or (ended if isinstance(ended, str) else "its worker was lost"))
        )

    def _failed(self, jobs: Sequence[Job], reason: str) -> int:
        for job in jobs:
            job.directory.write_status({**job.directory.read_status(), "state": "failed", "error": reason})
        return 1
