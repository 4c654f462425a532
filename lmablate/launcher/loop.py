"""Run a sweep: start jobs in processes, watch them, end those that hang, retry those that failed.

Other engines plug in through engine.py; the decisions here hold for all of them. No decision uses the wall clock.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lmablate.core.errors import ConfigError
from lmablate.core.locks import LockHeld, is_held
from lmablate.launcher.job_files import lock_owner_text, own_config, prepare
from lmablate.launcher.jobs import Job
from lmablate.launcher.running_job import GRACE_SECONDS, Running, Verdict
from lmablate.runs import recovery
from lmablate.runs.run_directory import check_writable

if TYPE_CHECKING:
    from lmablate.launcher.engine import JobStarter
    from lmablate.launcher.progress import Board
    from lmablate.launcher.slots import Slots

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
ELSEWHERE_SECONDS = 1.0  # between two checks of runs that another sweep trains
STOP_SECONDS = 300.0  # for a job to stop after the first signal; after a second one it has GRACE_SECONDS


class Loop:
    """A sweep at work. `starter` starts processes; each entry of `queue` holds the jobs of one process."""

    def __init__(self, queue: list[list[Job]], board: Board, slots: Slots, starter: JobStarter) -> None:
        self.queue, self.board, self.slots, self.starter = queue, board, slots, starter
        self.running: list[Running] = []
        self.elsewhere: list[list[Job]] = []  # another process has their locks
        self.tries: Counter[str] = Counter()
        self.prepared: dict[str, Job] = {}
        self._look_again = 0.0

    def run(self) -> int:
        """Keep every slot busy until all jobs have ended. Returns the signal that stopped the sweep, or 0."""
        forwarded = 0
        try:
            with stop_signals() as signals, self.starter:
                while self.queue or self.running or (self.elsewhere and not signals):
                    if not signals:
                        self._revisit()
                        self._start(lambda: bool(signals))
                    if len(signals) > forwarded:
                        if not forwarded:
                            self.board.stopping()
                        self._forward(signals[forwarded:], first=not forwarded)
                        forwarded = len(signals)
                    self.starter.pause(POLL_SECONDS)
                    for one in list(self.running):
                        self._collect(one, stopped=bool(signals))
        finally:
            for job in self.prepared.values():
                with suppress(OSError):
                    own_config(job).unlink(missing_ok=True)
        return signals[0] if signals else 0

    def _start(self, stopped: Callable[[], bool]) -> None:
        """Start jobs in the free slots."""
        while self.queue and not stopped() and self.starter.ready():
            index = self.starter.next(self.queue)
            slot = self.slots.acquire(self.queue[index][0])
            if slot is None:
                return
            jobs = [job for job in self.queue.pop(index) if not self._ended(job)]
            try:
                mine = [job for job in jobs if self._prepared(job)]
                process = self.starter.start(mine, slot) if mine else None
            except OSError as error:
                self.slots.release(slot)
                self._fail_unwritable(jobs, error)
                continue
            if process is None:
                self.slots.release(slot)
                continue
            limits = [job.cfg.runtime.time_limit for job in mine]
            limit = None if None in limits else sum(limits)  # type: ignore[arg-type]
            self.running.append(Running(mine, process, slot, limit))
            for job in mine:
                self.board.started(job)

    def _ended(self, job: Job) -> bool:
        """Return whether the job is done, and show it on the board. Another sweep may have finished it."""
        if job.done:
            self.board.finished(job, {"state": "done"})
        return job.done

    def _prepared(self, job: Job) -> bool:
        """Write the job's configuration for its process. If another process trains it, set the job aside and return False."""
        try:
            prepare(job)
        except LockHeld:
            self.elsewhere.append([job])
            self._look_again = time.monotonic() + ELSEWHERE_SECONDS
            self.board.status.pop(job.run_id, None)
            self.board.print_line(f"wait    {job.run_id}  {job.label}: {lock_owner_text(job)}")
            return False
        self.prepared[job.run_id] = job
        return True

    def _revisit(self) -> None:
        """Requeue the jobs that no other process trains any more."""
        if not self.elsewhere or time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + ELSEWHERE_SECONDS
        for unit in list(self.elsewhere):
            if all(self._ended(job) for job in unit):
                self.elsewhere.remove(unit)
            elif not any(is_held(job.directory.lock_path) for job in unit):
                self.elsewhere.remove(unit)
                self.queue.append(unit)

    def _forward(self, numbers: Sequence[int], *, first: bool) -> None:
        """Forward each signal once, since a second SIGINT stops a job at once. Nothing more starts."""
        self.queue.clear()
        self.starter.stop()
        patience = STOP_SECONDS if first else GRACE_SECONDS
        for one in self.running:
            one.kill_at = min(one.kill_at or float("inf"), time.monotonic() + patience)
            for number in numbers:
                one.send(number)

    def _collect(self, one: Running, *, stopped: bool) -> None:
        """Update the jobs of a process, and handle its end."""
        one.end_if_overdue()
        code = one.process.poll()
        for job in list(one.jobs):
            if self._ended(job):
                one.jobs.remove(job)
            else:
                self.board.update(job, job.directory.read_status())
        if code is None:
            return
        self.running.remove(one)
        self.slots.release(one.slot)
        if one.jobs and one.process.lost and not stopped:
            self.queue.insert(0, one.jobs)
            return
        for job in one.jobs:
            self._judge(job, one, code, stopped=stopped)

    def _judge(self, job: Job, one: Running, code: int, *, stopped: bool) -> None:
        """Handle a job without a result whose process has ended with `code`."""
        if code == recovery.HELD:
            self.board.status.pop(job.run_id, None)
            self.elsewhere.append([job])
            self._look_again = time.monotonic() + ELSEWHERE_SECONDS
            return
        verdict = one.verdict(job, code, stopped=stopped)
        if verdict["state"] == "failed" and not stopped and self._retry(job, verdict):
            self.queue.append([job])
            return
        self.board.finished(job, verdict)

    def _retry(self, job: Job, verdict: Verdict) -> bool:
        """Return whether a failed job is retried: with smaller passes after lack of memory, else up to `runtime.retries` times."""
        runtime = job.cfg.runtime
        if verdict["kind"] == recovery.MEMORY:
            smaller = recovery.smaller(job.cfg) if "killed" in verdict["error"] else None
            if smaller is None:
                return False
            job.cfg = smaller
            self.board.print_line(
                f"again   {job.run_id}  {job.label}: {verdict['error']}; now {recovery.pass_size_text(smaller)}"
            )
            return True
        if verdict["kind"] == recovery.CONFIG or self.tries[job.run_id] >= (runtime.retries or 0):
            return False
        self.tries[job.run_id] += 1
        nth = f"{self.tries[job.run_id]} of {runtime.retries}"
        self.board.print_line(f"again   {job.run_id}  {job.label}: {verdict['error']}; retry {nth}")
        return True

    def _fail_unwritable(self, jobs: Sequence[Job], error: OSError) -> None:
        """Fail jobs that cannot be prepared, and the rest of the queue if results_dir is not writable."""
        reason = recovery.disk_message(error)
        self._give_up(jobs, reason)
        try:
            check_writable(jobs[0].cfg.results_dir)
        except ConfigError as none:
            reason = str(none)
            while self.queue:
                self._give_up(self.queue.pop(), reason)

    def _give_up(self, jobs: Sequence[Job], reason: str) -> None:
        for job in jobs:
            if not job.done:
                self.board.finished(job, {"state": "failed", "error": reason})


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the SIGTERMs and SIGINTs that arrive in this context."""
    signals: list[int] = []
    previous = {
        number: signal.signal(number, lambda n, _: signals.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
