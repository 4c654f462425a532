"""Runs jobs on this machine: one process each, as many at a time as there are cores (or GPUs) for them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from lmablate.display import Board
from lmablate.jobs import Job
from lmablate.run import write_config

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1


@dataclass
class Running:
    """A job that has a process."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    log_file: IO[bytes]


def run_jobs(jobs: Sequence[Job]) -> int:
    """Train every job that has no result yet; returns the exit code of the command.

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
        stopped_by = _run_here(todo[0], board) if len(todo) == 1 else _run_in_processes(todo, board)
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


def _run_in_processes(todo: Sequence[Job], board: Board) -> int:
    """Keep every slot busy until all jobs have ended. Returns the signal that stopped the sweep, or 0."""
    queue = list(todo)
    free = list(range(slots(todo)))
    running: list[Running] = []
    forwarded = 0
    with _stop_signals() as asked:
        while queue or running:
            while queue and free and not asked:
                running.append(_start(queue.pop(0), free.pop(0)))
                board.started(running[-1].job)
            for number in asked[forwarded:]:  # each once: a second SIGINT means "stop at once" to a job
                queue.clear()
                for one in running:
                    _signal(one, number)
            forwarded = len(asked)
            time.sleep(POLL_SECONDS)
            for one in list(running):
                if one.process.poll() is None:
                    board.update(one.job, _status(one.job))
                    continue
                running.remove(one)
                free.append(one.slot)
                one.log_file.close()
                board.finished(one.job, _verdict(one, stopped=bool(asked)))
    return asked[0] if asked else 0


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


def _start(job: Job, slot: int) -> Running:
    from lmablate.model.parts import trusted

    directory = job.directory
    write_config(job.cfg, directory.config_path)
    directory.write_status({"state": "starting", "step": 0, "steps": job.cfg.trainer.steps})
    threads = str(job.cfg.runtime.threads)
    # Two OpenMP teams on one core wait for each other; with one thread a run there is nothing to wait for.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }
    if job.cfg.runtime.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(_gpu_count())]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    command = [sys.executable, "-m", "lmablate.launcher.worker", str(directory.path), "--parent", str(os.getpid())]
    for package in trusted():
        command += ["--trust", package]
    log_file = open(directory.log_path, "ab")  # noqa: SIM115 - closed when the process ends
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log_file,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    return Running(job, process, slot, log_file)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _status(job: Job) -> dict[str, Any]:
    """The job's heartbeat; empty while there is none to read."""
    try:
        status = json.loads((job.directory.path / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _verdict(one: Running, *, stopped: bool) -> dict[str, Any]:
    """What became of a process that has ended. Only a result on disk counts as done."""
    if one.job.done:
        return {"state": "done"}
    code = one.process.returncode
    if stopped and code in (143, -signal.SIGTERM, -signal.SIGINT, 130):
        return {"state": "stopped"}
    status = _status(one.job)
    reason = status.get("error") or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
    one.job.directory.write_status({**status, "state": "failed", "error": reason})
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
