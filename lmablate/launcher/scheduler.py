"""Runs jobs on this machine: one process each, as many at a time as there are cores (or GPUs) for them."""

from __future__ import annotations

import json
import logging
import os
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmablate.display import Board
from lmablate.jobs import Job
from lmablate.launcher.groups import group_jobs, split_trunks
from lmablate.launcher.processes import Process, Starter
from lmablate.run import write_config

if TYPE_CHECKING:
    from lmablate.data import TokenData

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1


@dataclass
class Running:
    """Jobs that have a process: one, or several of one graph. A job that has its result is taken out."""

    jobs: list[Job]
    process: Process
    slot: int


def run_jobs(jobs: Sequence[Job], gang: Mapping[str, TokenData] | None = None) -> int:
    """Train every job that has no result yet; returns the exit code of the command.

    With `gang`, the data of each job by run id, jobs of equal graphs share a process and may train together.

    A job that fails harms no other; failures are listed at the end with their overrides and logs. SIGTERM and SIGINT go
    to the jobs, which write a checkpoint and stop.
    """
    from lmablate.tracking import resolve_mode

    todo = [job for job in jobs if not job.done]
    board = Board(jobs, todo)
    if todo:
        mode = resolve_mode(todo[0].cfg.runtime.wandb)  # once, so that its hint is given once
        for job in todo:
            runtime = job.cfg.runtime.model_copy(update={"wandb": mode})
            job.cfg = job.cfg.model_copy(update={"runtime": runtime})
    with board:
        if len(todo) == 1:
            stopped_by = _run_here(todo[0], board)
        else:
            queue = heaviest_first(todo)
            trunks, rest = split_trunks(queue)
            groups = [[job] for job in rest] if gang is None else group_jobs(rest, gang, slots(todo))
            groups = [*trunks, *groups]
            stopped_by = _run_in_processes(groups, board, slots(todo))
    if stopped_by:
        board.say(
            f"stopped: {sum(job.done for job in jobs)} of {len(jobs)} runs are done; the same command continues from the checkpoints"
        )
        return 128 + stopped_by
    board.summary()
    return 1 if board.failed else 0


def _run_here(job: Job, board: Board) -> int:
    """A single job needs no process of its own. Returns the signal that stopped it, or 0."""
    from lmablate.run import execute, load_data
    from lmablate.trainer import Interrupted

    board.started(job)
    try:
        execute(job.cfg, load_data(job.cfg), on_status=lambda status: board.update(job, status))
    except Interrupted as stop:
        return int(stop.args[0]) if stop.args else signal.SIGINT
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        job.directory.write_status({"state": "failed", "pid": os.getpid(), "error": reason})
        board.finished(job, {"state": "failed", "error": reason})
        return 0
    board.finished(job, {"state": "done"})
    return 0


def _run_in_processes(queue: list[list[Job]], board: Board, n_slots: int) -> int:
    """Keep every slot busy until all jobs have ended. Returns the signal that stopped the sweep, or 0."""
    free = list(range(n_slots))
    running: list[Running] = []
    forwarded = 0
    with _stop_signals() as asked, Starter(queue) as starter:
        while queue or running:
            while queue and free and not asked and starter.ready():
                jobs, slot = queue.pop(starter.next(queue)), free.pop(0)
                for job in jobs:
                    _prepare(job)
                running.append(Running(jobs, starter.start(jobs, slot), slot))
                for job in jobs:
                    board.started(job)
            for number in asked[forwarded:]:  # each once: a second SIGINT means "stop at once" to a job
                queue.clear()
                starter.stop()
                for one in running:
                    _signal(one, number)
            forwarded = len(asked)
            starter.pause(POLL_SECONDS)
            for one in list(running):
                code = one.process.poll()
                for job in list(one.jobs):
                    if job.done:
                        one.jobs.remove(job)
                        board.finished(job, {"state": "done"})
                    else:
                        board.update(job, _status(job))
                if code is None:
                    continue
                running.remove(one)
                free.append(one.slot)
                if one.jobs and one.process.lost and not asked:
                    queue.insert(0, one.jobs)
                    continue
                for job in one.jobs:
                    board.finished(job, _verdict(job, code, stopped=bool(asked)))
    return asked[0] if asked else 0


def heaviest_first(jobs: Sequence[Job]) -> list[Job]:
    """By FLOPs of the whole run, else in the order given: a long run that starts last leaves the other cores idle."""
    return sorted(jobs, key=lambda job: -_flops(job))


def _flops(job: Job) -> int:
    from lmablate.budget import flops_per_token

    try:
        return flops_per_token(job.cfg) * job.cfg.tokens
    except Exception:  # a part of the user's own that cannot be counted: its run will say so, and harm no other
        return 0


def slots(jobs: Sequence[Job]) -> int:
    """How many jobs run at a time: runtime.workers, else one a GPU, else one for each `runtime.threads` cores."""
    if not jobs:
        return 0
    runtime = jobs[0].cfg.runtime
    if runtime.workers:
        return min(runtime.workers, len(jobs))
    if runtime.device == "cuda":
        import torch

        return min(torch.cuda.device_count(), len(jobs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(1, cores // runtime.threads), len(jobs))


def _prepare(job: Job) -> None:
    write_config(job.cfg, job.directory.config_path)
    job.directory.write_status({"state": "starting", "step": 0, "steps": job.cfg.trainer.steps})


def _status(job: Job) -> dict[str, Any]:
    """The job's heartbeat; empty while there is none to read."""
    try:
        status = json.loads((job.directory.path / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _verdict(job: Job, code: int, *, stopped: bool) -> dict[str, Any]:
    """What became of a job without a result whose process has ended with `code`."""
    if stopped and code in (143, -signal.SIGTERM, -signal.SIGINT, 130):
        return {"state": "stopped"}
    status = _status(job)
    reason = status.get("error") or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
    job.directory.write_status({**status, "state": "failed", "error": reason})
    return {"state": "failed", "error": reason}


def _signal(one: Running, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, number)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
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
