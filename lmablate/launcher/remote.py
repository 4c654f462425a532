"""What all engines share: how it is known what became of a job that runs elsewhere, and whether it is handed over again."""

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
GRACE_SECONDS = 3.0  # for the last words of a run to arrive through a shared file system
SHARE = (
    "the folder of the run is not there on the machine that was to train it: put results_dir, the current folder and "
    "LMABLATE_CACHE on a file system that all machines share"
)


class Retries:
    """How often each run has been handed over again after its worker was lost."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used: Counter[str] = Counter()

    def take(self, jobs: Sequence[Job]) -> bool:
        """Is there another try for these?"""
        name = jobs[0].run_id
        self.used[name] += 1
        return self.used[name] <= self.limit


class RemoteProcess:
    """A job in an engine's hands. What became of it is read in the run's own folder; the engine only says that it ended.

    `ended` gives None while the job lives or waits, afterwards what the engine knows: an exit code, or words.
    """

    pid = 0  # of no process on this machine

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
        """It is in the engine's queue, and its time has not begun."""
        return self.code is None and self.jobs[0].directory.read_status().get("state") == "starting"

    def send(self, number: int) -> None:
        """Ask it to stop; engines know one way only, whatever the signal."""
        if self.code is None:
            self._send(number)

    def poll(self) -> int | None:
        """0 done, 1 failed, 143 stopped; `lost` where it is to be handed over again."""
        if self.code is None and (told := self._ended()) is not None:
            self._seen = self._seen or time.monotonic()
            self.code = self._judge(told, waited=time.monotonic() - self._seen >= GRACE_SECONDS)
        return self.code

    def _judge(self, told: int | str, *, waited: bool) -> int | None:
        left = [job for job in self.jobs if not job.done]
        if not left:
            return 0
        status = left[0].directory.read_status()
        if told == HELD:
            return HELD
        if told == NO_FOLDER:
            return self._failed(left, SHARE)
        if status.get("state") == "failed" and not status.get("killed"):
            return 1
        if not waited:
            return None
        if self.retries.take(left):
            why = status.get("error") or (told if isinstance(told, str) else "its worker ended")
            log.warning("%s (%s): %s; it goes on from its checkpoint", left[0].label, left[0].run_id, why)
            self.lost = True
            return 143
        if status.get("state") == "stopped":
            return 143
        return self._failed(
            left, str(status.get("error") or (told if isinstance(told, str) else "its worker was lost"))
        )

    def _failed(self, jobs: Sequence[Job], reason: str) -> int:
        for job in jobs:
            job.directory.write_status({**job.directory.read_status(), "state": "failed", "error": reason})
        return 1
