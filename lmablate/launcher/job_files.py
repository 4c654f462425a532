"""What a launcher leaves in a run's folder for the process that trains it, and reads there of what has become of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.locks import FileLock, owner
from lmablate.runs.config_file import ASKED, launcher_name, write_config

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job


def prepare(job: Job) -> None:
    """Leave the configuration that the job's process reads, and say that it starts. Raises LockHeld."""
    directory = job.directory.create()
    with suppress(OSError):
        own_config(job).unlink(missing_ok=True)
    lock = FileLock.acquire(directory.lock_path)
    try:
        write_config(job.cfg, directory.config_path)
        write_config(job.cfg, own_config(job))
        leave_status(job, {"state": "starting", "step": 0, "steps": job.cfg.trainer.steps})
    finally:
        lock.release()


def own_config(job: Job) -> Path:
    return job.directory.path / f".asked-{launcher_name()}.yaml"


def name_launcher() -> None:
    """Have this launcher's processes read the configurations that it wrote."""
    os.environ[ASKED] = launcher_name()


def read_status(job: Job) -> dict[str, Any]:
    """The job's heartbeat; empty while there is none to read."""
    return job.directory.read_status()


def leave_status(job: Job, status: dict[str, Any]) -> None:
    """Replace a job's status, if that can be written: it is for display."""
    with suppress(OSError):
        job.directory.write_status(status)


def trained_by(job: Job) -> str:
    """Who has the job's lock, in words."""
    who = owner(job.directory.lock_path)
    return f"process {who.get('pid', '?')} on {who.get('host', '?')} trains it"
