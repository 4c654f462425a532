"""Write the files that a launcher leaves in a run's folder for its process, and read those of the process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.locks import FileLock, owner
from lmablate.runs.config_file import LAUNCHER_VARIABLE, launcher_name, write_config

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job


def prepare(job: Job) -> None:
    """Write the configuration that the job's process reads, and mark the job as starting. Raises LockHeld."""
    directory = job.directory.create()
    with suppress(OSError):
        own_config(job).unlink(missing_ok=True)
    lock = FileLock.acquire(directory.lock_path)
    try:
        write_config(job.cfg, directory.config_path)
        write_config(job.cfg, own_config(job))
        write_status_file(job, {"state": "starting", "step": 0, "steps": job.cfg.trainer.steps})
    finally:
        lock.release()


def own_config(job: Job) -> Path:
    """Return the path of the configuration that this launcher writes for a job."""
    return job.directory.path / f".asked-{launcher_name()}.yaml"


def name_launcher() -> None:
    """Make this launcher's processes read the configurations that it wrote."""
    os.environ[LAUNCHER_VARIABLE] = launcher_name()


def write_status_file(job: Job, status: dict[str, Any]) -> None:
    """Replace a job's status.json, and ignore a failed write: the file is for display."""
    with suppress(OSError):
        job.directory.write_status(status)


def lock_owner_text(job: Job) -> str:
    """Return text that names the process which holds the job's lock."""
    who = owner(job.directory.lock_path)
    return f"process {who.get('pid', '?')} on {who.get('host', '?')} trains it"
