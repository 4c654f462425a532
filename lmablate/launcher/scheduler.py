"""Run jobs on this machine: one process each, as many at a time as cores (or GPUs) allow."""

from __future__ import annotations

import os
import shlex
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial

from lmablate.core.hardware import cores
from lmablate.core.locks import LockHeld, is_held
from lmablate.data import TokenData
from lmablate.launcher import sweep_manifest
from lmablate.launcher.engine import Engine
from lmablate.launcher.grouping import group_jobs, split_trunks
from lmablate.launcher.job_files import name_launcher, write_status_file
from lmablate.launcher.jobs import Job, put_aside
from lmablate.launcher.loop import ELSEWHERE_SECONDS, Loop
from lmablate.launcher.processes import Starter
from lmablate.launcher.progress import Board
from lmablate.launcher.slots import Slots, gpus, parallel_jobs, slots_for
from lmablate.runs.prepared import prepare_run
from lmablate.runs.recovery import failure
from lmablate.runs.run import execute
from lmablate.runs.tracking.account import resolve_mode
from lmablate.runs.tracking.client import following, unsent
from lmablate.training.progress import Interrupted


def run_jobs(jobs: Sequence[Job], gang: Mapping[str, TokenData] | None = None, engine: Engine | None = None) -> int:
    """Train every job that has no result yet. Returns the exit code of the command.

    With `gang`, the data of each job by run id, jobs of equal graphs share a process and may train together. With
    `engine`, its processes are used instead of local ones (engine.py).

    A failed job affects no other; failures are listed at the end with their overrides and logs. SIGTERM and SIGINT are
    forwarded to the jobs, which write a checkpoint and stop.
    """
    sweep_manifest.record(jobs)
    put_aside(jobs)
    todo = [job for job in jobs if not job.done]
    engine = engine if todo else None  # without jobs, no cluster is contacted
    board = Board(jobs, todo)
    mode = (
        resolve_mode(jobs[0].cfg.runtime.wandb) if jobs else "disabled"
    )  # resolved once, so that its hint is logged once
    for job in todo:
        runtime = job.cfg.runtime.model_copy(update={"wandb": mode})
        job.cfg = job.cfg.model_copy(update={"runtime": runtime})
    left = [job for job in jobs if job.done and unsent(job.directory.path)]  # left unsent by a killed follower
    followed = [*todo, *left] if engine is None else left  # an engine's tasks start their own followers
    with board, following([job.directory.path for job in followed], mode):
        if len(todo) == 1 and engine is None and not _needs_process(todo[0]):
            stopped_by = _run_here(todo[0], board)
        else:
            queue = heaviest_first(todo)
            trunks, rest = split_trunks(queue)
            groups = [[job] for job in rest] if gang is None else group_jobs(rest, gang, slot_count(todo))
            groups = [*trunks, *groups]
            n_slots = slot_count(todo) if engine is None else engine.slots(todo)
            stopped_by = _run_in_processes(groups, board, n_slots, engine)
    if kept := offline_hint([*todo, *left]):
        board.print_line(kept)
    if stopped_by:
        n = f"{sum(job.done for job in jobs)} of {len(jobs)} run{'s are' if len(jobs) != 1 else ' is'} done"
        board.print_line(f"stopped: {n}; the same command continues from the checkpoints")
        return 128 + stopped_by
    board.summary()
    return 1 if board.failed else 0


def offline_hint(jobs: Sequence[Job]) -> str:
    """Return the command that uploads the offline wandb files of these runs, or "" if there are none."""
    kept = [job.directory.path for job in jobs if any(job.directory.path.glob("wandb/offline-run-*"))]
    if not kept:
        return ""
    where = (
        [shlex.quote(str(kept[0]))]
        if len(kept) == 1
        else [f"{shlex.quote(str(f))}/*" for f in {p.parent for p in kept}]
    )
    n = f"{len(kept)} run{'s' * (len(kept) != 1)}"
    folders = " ".join(f"{folder}/wandb/offline-run-*" for folder in where)
    return f"wandb keeps {n} offline; to upload: wandb sync --include-online {folders}"


def _run_here(job: Job, board: Board) -> int:
    """Train a single job in this process. Returns the signal that stopped it, or 0."""
    board.started(job)
    try:
        while True:
            try:
                execute(prepare_run(job.cfg), partial(board.update, job), board.stopping)
                break
            except LockHeld as held:
                board.print_line(f"wait    {job.run_id}  {job.label}: {held}")
                while is_held(job.directory.lock_path):
                    time.sleep(ELSEWHERE_SECONDS)
    except (Interrupted, KeyboardInterrupt) as stop:  # the latter: a second signal, within a step
        if job.directory.path.is_dir():
            write_status_file(job, {**job.directory.read_status(), "state": "stopped"})
        return int(stop.args[0]) if stop.args else signal.SIGINT
    except Exception as error:
        verdict = failure(error, job.cfg)
        if verdict["kind"] is None:
            traceback.print_exc()
        write_status_file(job, {**job.directory.read_status(), **verdict, "pid": os.getpid()})
        board.finished(job, verdict)
        return 0
    board.finished(job, {"state": "done"})
    return 0


def _needs_process(job: Job) -> bool:
    """Return whether a run needs a process of its own, since it cannot watch over itself."""
    runtime = job.cfg.runtime
    return runtime.time_limit is not None or bool(runtime.retries) or runtime.gpu_memory is not None


def _run_in_processes(queue: list[list[Job]], board: Board, n_slots: int, engine: Engine | None) -> int:
    """Keep every slot busy until all jobs have ended. Returns the signal that stopped the sweep, or 0."""
    name_launcher()
    if engine is not None:
        return Loop(queue, board, Slots(n_slots), engine).run()
    slots = slots_for([job for unit in queue for job in unit], n_slots)
    return Loop(queue, board, slots, Starter(queue, slots)).run()


def heaviest_first(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs by decreasing FLOPs, since a long run that starts last leaves other cores idle. The sort is stable."""
    return sorted(jobs, key=lambda job: -job.work)


def slot_count(jobs: Sequence[Job]) -> int:
    """Return how many jobs run at a time: runtime.workers, else one a GPU, else one for each `runtime.threads` cores."""
    if not jobs:
        return 0
    runtime = jobs[0].cfg.runtime
    if runtime.workers:
        return min(runtime.workers, len(jobs))
    if runtime.device == "cuda":
        needs = [job.cfg.runtime.gpu_memory for job in jobs]
        return min(parallel_jobs(gpus(measured=any(need is not None for need in needs)), needs), len(jobs))
    return min(max(1, cores() // runtime.threads), len(jobs))
