"""The loop of a sweep: hands jobs to processes, watches them, ends those that hang, tries again what failed.

A further engine hooks in through engine.py; what is decided here holds for all of them. Nothing here goes by the wall clock.
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
from lmablate.launcher.job_files import own_config, prepare, read_status, trained_by
from lmablate.launcher.jobs import Job
from lmablate.launcher.running_job import GRACE_SECONDS, Running, Verdict
from lmablate.runs import recovery
from lmablate.runs.run_directory import check_writable

if TYPE_CHECKING:
    from lmablate.launcher.engine import Starts
    from lmablate.launcher.progress import Board
    from lmablate.launcher.slots import Places

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
ELSEWHERE_SECONDS = 1.0  # between two looks at runs that another sweep trains
STOP_SECONDS = 300.0  # for a job that was asked to stop; asked twice, it has GRACE_SECONDS


class Loop:
    """One sweep at work. `starter` starts processes; `queue` holds jobs that share one."""

    def __init__(self, queue: list[list[Job]], board: Board, places: Places, starter: Starts) -> None:
        self.queue, self.board, self.places, self.starter = queue, board, places, starter
        self.running: list[Running] = []
        self.elsewhere: list[list[Job]] = []  # another process has their locks
        self.tries: Counter[str] = Counter()
        self.prepared: dict[str, Job] = {}
        self._look_again = 0.0

    def run(self) -> int:
        """Keep every slot busy until all jobs have ended. Returns the signal that stopped the sweep, or 0."""
        forwarded = 0
        try:
            with stop_signals() as asked, self.starter:
                while self.queue or self.running or (self.elsewhere and not asked):
                    if not asked:
                        self._revisit()
                        self._start(lambda: bool(asked))
                    if len(asked) > forwarded:
                        if not forwarded:
                            self.board.stopping()
                        self._forward(asked[forwarded:], first=not forwarded)
                        forwarded = len(asked)
                    self.starter.pause(POLL_SECONDS)
                    for one in list(self.running):
                        self._collect(one, stopped=bool(asked))
        finally:
            for job in self.prepared.values():
                with suppress(OSError):
                    own_config(job).unlink(missing_ok=True)
        return asked[0] if asked else 0

    def _start(self, stopped: Callable[[], bool]) -> None:
        """Fill the free slots."""
        while self.queue and not stopped() and self.starter.ready():
            index = self.starter.next(self.queue)
            slot = self.places.take(self.queue[index][0])
            if slot is None:
                return
            jobs = [job for job in self.queue.pop(index) if not self._ended(job)]
            try:
                mine = [job for job in jobs if self._prepared(job)]
                process = self.starter.start(mine, slot) if mine else None
            except OSError as error:
                self.places.give_back(slot)
                self._cannot_write(jobs, error)
                continue
            if process is None:
                self.places.give_back(slot)
                continue
            limits = [job.cfg.runtime.time_limit for job in mine]
            limit = None if None in limits else sum(limits)  # type: ignore[arg-type]
            self.running.append(Running(mine, process, slot, limit))
            for job in mine:
                self.board.started(job)

    def _ended(self, job: Job) -> bool:
        """Has another sweep finished this job since we looked?"""
        if job.done:
            self.board.finished(job, {"state": "done"})
        return job.done

    def _prepared(self, job: Job) -> bool:
        """Leave the job's configuration for its process; False, and the job put aside, if another process trains it."""
        try:
            prepare(job)
        except LockHeld:
            self.elsewhere.append([job])
            self._look_again = time.monotonic() + ELSEWHERE_SECONDS
            self.board.status.pop(job.run_id, None)
            self.board.say(f"wait    {job.run_id}  {job.label}: {trained_by(job)}")
            return False
        self.prepared[job.run_id] = job
        return True

    def _revisit(self) -> None:
        """Take back the jobs that nobody else trains any more."""
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
        """Hand signals on, each once: a second SIGINT means "stop at once" to a job. Nothing more starts."""
        self.queue.clear()
        self.starter.stop()
        patience = STOP_SECONDS if first else GRACE_SECONDS
        for one in self.running:
            one.kill_at = min(one.kill_at or float("inf"), time.monotonic() + patience)
            for number in numbers:
                one.send(number)

    def _collect(self, one: Running, *, stopped: bool) -> None:
        """Take in what has become of a process."""
        one.end_if_overdue()
        code = one.process.poll()
        for job in list(one.jobs):
            if self._ended(job):
                one.jobs.remove(job)
            else:
                self.board.update(job, read_status(job))
        if code is None:
            return
        self.running.remove(one)
        self.places.give_back(one.slot)
        if one.jobs and one.process.lost and not stopped:
            self.queue.insert(0, one.jobs)
            return
        for job in one.jobs:
            self._judge(job, one, code, stopped=stopped)

    def _judge(self, job: Job, one: Running, code: int, *, stopped: bool) -> None:
        """What becomes of a job without a result whose process has ended with `code`."""
        if code == recovery.HELD:
            self.board.status.pop(job.run_id, None)
            self.elsewhere.append([job])
            self._look_again = time.monotonic() + ELSEWHERE_SECONDS
            return
        verdict = one.verdict(job, code, stopped=stopped)
        if verdict["state"] == "failed" and not stopped and self._again(job, verdict):
            self.queue.append([job])
            return
        self.board.finished(job, verdict)

    def _again(self, job: Job, verdict: Verdict) -> bool:
        """Is a failed job tried again: with smaller passes where memory was lacking, else as often as `runtime.retries` says?"""
        runtime = job.cfg.runtime
        if verdict["kind"] == recovery.MEMORY:
            smaller = recovery.smaller(job.cfg) if "killed" in verdict["error"] else None
            if smaller is None:
                return False
            job.cfg = smaller
            self.board.say(
                f"again   {job.run_id}  {job.label}: {verdict['error']}; now {recovery.pass_size_text(smaller)}"
            )
            return True
        if verdict["kind"] == recovery.CONFIG or self.tries[job.run_id] >= (runtime.retries or 0):
            return False
        self.tries[job.run_id] += 1
        nth = f"{self.tries[job.run_id]} of {runtime.retries}"
        self.board.say(f"again   {job.run_id}  {job.label}: {verdict['error']}; retry {nth}")
        return True

    def _cannot_write(self, jobs: Sequence[Job], error: OSError) -> None:
        """A job that cannot even be prepared has failed; if no run could be, the rest of the queue has too."""
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
    """The SIGTERMs and SIGINTs that have arrived."""
    asked: list[int] = []
    previous = {
        number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
