"""Record the jobs of a sweep, and tell the state of its runs.

``RESULTS_DIR/.sweeps/<name>.json`` lists the jobs of a command of several runs, with the configuration of each, so that
runs that never started are known too, and can be started. A study's stages add to one file; any other command has its
own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lmablate.core import access
from lmablate.core.files import atomic_write, read_json
from lmablate.core.locks import FileLock, LockHeld, is_held, owner
from lmablate.runs.progress_file import age
from lmablate.runs.run_directory import RUN_ID, RunDirectory, read_result_file
from lmablate.schema.identity import is_stale

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job

log = logging.getLogger(__name__)
FOLDER = ".sweeps"
LOCK_SECONDS = 10.0  # to wait for another command that writes the same file
SILENT_SECONDS = 600.0  # without a heartbeat, after which a run is stale on a file system without locks
STATES = ("done", "diverged", "running", "stale", "stopped", "failed", "damaged", "missing")


class ManifestJob(BaseModel):
    """One run of a command. `config` is its RunConfig when the command started."""

    model_config = ConfigDict(strict=True)

    run_id: str
    label: str = ""
    overrides: list[str] = []
    config: dict[str, Any] | None = None


class SweepManifest(BaseModel):
    """The manifest of a command, or of all stages of a study."""

    model_config = ConfigDict(strict=True)

    schema_version: Literal[1] = 1
    sweep: str
    jobs: list[ManifestJob]


@dataclass
class SweepJobs:
    """The jobs of a command by run id."""

    name: str
    jobs: dict[str, ManifestJob] = field(default_factory=dict)


def record(jobs: Sequence[Job]) -> None:
    """Write the manifest of a command before it trains. A failed write costs the overview, and not the sweep."""
    if len(jobs) < 2 and not any(job.cfg.sweep for job in jobs):
        return
    for results_dir in dict.fromkeys(job.cfg.results_dir for job in jobs):
        own = [job for job in jobs if job.cfg.results_dir == results_dir]
        folder = Path(results_dir) / FOLDER
        name = _name(own)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock.acquire(folder / ".lock", LOCK_SECONDS)
            try:
                _write(folder / f"{name}.json", own)
            finally:
                lock.release()
        except (OSError, LockHeld) as error:
            why = access.reason(error) if isinstance(error, OSError) else error
            log.warning("%s: the list of this sweep's runs was not written (%s)", folder, why)


def _write(path: Path, jobs: Sequence[Job]) -> None:
    known = _read(path)
    entries = {} if known is None else known.jobs
    for job in jobs:
        entries[job.run_id] = ManifestJob(
            run_id=job.run_id, label=job.label, overrides=job.cfg.overrides, config=job.cfg.model_dump()
        )
    manifest = SweepManifest(sweep=jobs[0].cfg.sweep or path.stem, jobs=list(entries.values()))
    atomic_write(path, json.dumps(manifest.model_dump()) + "\n")


def _name(jobs: Sequence[Job]) -> str:
    """Return the name of a study, whose later stages are not known yet, or a name from the run ids. The same command
    thus has the same file."""
    sweep = re.sub(r"[^A-Za-z0-9_.-]+", "_", jobs[0].cfg.sweep or "grid").lstrip(".") or "grid"
    if any(job.cfg.stage is not None for job in jobs):
        return sweep
    return f"{sweep}-{hashlib.sha256(' '.join(sorted(job.run_id for job in jobs)).encode()).hexdigest()[:8]}"


def load_sweeps(results_dir: str | Path) -> list[SweepJobs]:
    """Return the sweeps of a results directory, and last, without a name, the runs that no sweep lists. Damaged files
    are skipped with a warning."""
    folder = Path(results_dir)
    sweeps = [sweep for path in _files(folder / FOLDER) if (sweep := _read(path)) is not None]
    known = {run_id for sweep in sweeps for run_id in sweep.jobs}
    alone = SweepJobs("")
    marks = ("config.yaml", "result.json", "status.json", "history.jsonl")
    for path, closed in access.folders(folder):
        of_run = RUN_ID.fullmatch(path.name) if closed else any(access.there(path / mark) for mark in marks)
        if path.name not in known and of_run:
            alone.jobs[path.name] = ManifestJob(run_id=path.name)
    return [*sweeps, alone] if alone.jobs else sweeps


def _files(folder: Path) -> list[Path]:
    try:
        return access.listed(folder, "*.json")
    except OSError as error:
        log.warning("%s: left out, so that runs which never started are not known (%s)", folder, access.reason(error))
        return []


def _read(path: Path) -> SweepJobs | None:
    try:
        manifest = SweepManifest.model_validate(read_json(path))
        known = {job.run_id: job for job in manifest.jobs if RUN_ID.fullmatch(job.run_id)}  # it becomes a folder name
        return SweepJobs(manifest.sweep, known)
    except FileNotFoundError:  # another command is about to write it
        pass
    except PermissionError as error:
        log.warning("%s: left out (%s)", path, access.reason(error))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        log.warning("%s: left out, being damaged (%s: %s)", path, ".".join(map(str, first["loc"])), first["msg"])
    except (OSError, ValueError) as error:
        log.warning("%s: left out, being damaged (%s)", path, error)
    return None


def run_status(results_dir: str | Path, run_id: str) -> dict[str, Any]:
    """Return the state of a run, with None for unknown values. Keys: `state` (one of STATES), `step` and `steps`, `age`
    of its heartbeat in seconds, `host`, `pid`, `error`, `attempts`, `val_loss`, `overrides` (of a finished run). The
    lock tells whether the run is at work, since its owner cannot outlive it; clocks do not."""
    directory = RunDirectory(results_dir, run_id)
    status = directory.read_status()
    found: dict[str, Any] = {"run_id": run_id, "state": "missing", "age": age(directory) if status else None}
    found |= {key: status.get(key) for key in ("step", "steps", "error", "host", "pid")}
    found |= {"attempts": _lines(directory.attempts_path), "val_loss": None, "older": False, "overrides": None}
    held = is_held(directory.lock_path)
    row = directory.read_result()
    if row is not None:
        state = {"completed": "done"}.get(row.status, row.status)
        found |= {
            "state": state,
            "val_loss": row.val_loss,
            "step": None,
            "error": None,
            "older": is_stale(row.science_version, row.code),
        }
        found["overrides"] = row.provenance.get("overrides")
    elif held or (held is None and _fresh(status, found["age"])):
        found |= {"state": "running", "error": None}
        found |= {key: value for key, value in owner(directory.lock_path).items() if key in ("host", "pid")}
    elif why := _unreadable(directory):
        found |= {"state": "damaged", "error": why}
    elif status.get("state") in ("failed", "stopped"):
        found["state"] = status["state"]
    elif status:
        found["state"] = "stale"
    return found


def _unreadable(directory: RunDirectory) -> str:
    """Return why the state of a run without a row is unknown, or ""."""
    if why := access.why_closed(directory.path) if access.there(directory.path) else "":
        return why
    if access.there(directory.result_path):
        return f"result.json: {read_result_file(directory.result_path)[1]}; the run's command makes it again"
    try:
        read_json(directory.status_path)
    except PermissionError as error:
        return access.reason(error)
    except (OSError, ValueError):
        pass
    return ""


def _fresh(status: Mapping[str, Any], seconds: float | None) -> bool:
    return status.get("state") == "running" and seconds is not None and seconds < SILENT_SECONDS


def _lines(path: Path) -> int:
    with suppress(OSError):
        return path.read_bytes().count(b"\n")
    return 0
