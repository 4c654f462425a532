"""Watch a process at work on jobs: its time limit, and the verdict at its end."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmablate.launcher.job_files import write_status_file
from lmablate.runs import recovery

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.launcher.processes import Process

GRACE_SECONDS = 30.0  # for a job past its time limit to write a checkpoint
Verdict = dict[str, Any]


@dataclass
class Running:
    """A process with its jobs: one, or several of one graph. A job that has its result is removed from `jobs`."""

    jobs: list[Job]
    process: Process
    slot: int
    limit: float | None  # seconds
    began: float = field(default_factory=time.monotonic)
    oom_kills: int | None = field(default_factory=lambda: recovery.oom_kills())
    overdue: bool = False
    kill_at: float | None = None

    def end_if_overdue(self) -> None:
        """Stop a process that exceeds its time limit, and kill it if it does not end."""
        now = time.monotonic()
        if getattr(self.process, "waits_for_graph", False):
            self.began = now
        if self.limit is not None and not self.overdue and now - self.began > self.limit:
            self.overdue, self.kill_at = True, now + GRACE_SECONDS
            self.send(signal.SIGTERM)
        if self.kill_at is not None and now > self.kill_at:
            self.kill_at = now + GRACE_SECONDS
            self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send(number)

    def verdict(self, job: Job, code: int, *, stopped: bool) -> Verdict:
        """Return and store the status of a job without a result whose process has ended with `code`."""
        status = job.directory.read_status()
        if stopped and code in (143, -signal.SIGTERM, -signal.SIGINT, 130):
            write_status_file(job, {**status, "state": "stopped"})
            return {"state": "stopped"}
        own = status.get("error") if status.get("state") == "failed" else None
        kind = status.get("kind") if own else None
        reason = own or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if self.overdue:
            reason = f"not done within runtime.time_limit={self.limit:g} seconds, at step {status.get('step', 0)}"
            kind = "time_limit"
        elif code == -signal.SIGKILL and recovery.oom_kills() != self.oom_kills:
            reason, kind = f"{reason} for lack of memory: {recovery.pass_size_text(job.cfg)}", recovery.MEMORY
        verdict = {"state": "failed", "error": reason, "kind": kind}
        if kind == recovery.MEMORY:
            verdict["tried"] = status.get("tried") or recovery.tried(job.cfg)
        write_status_file(job, {**status, **verdict})
        return verdict
