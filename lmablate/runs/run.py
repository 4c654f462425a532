"""Train one run, from a resolved configuration to a row on disk."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch

from lmablate.core.axes import default_choices
from lmablate.core.files import remove_leftovers
from lmablate.core.locks import FileLock
from lmablate.core.settings import BOOKKEEPING
from lmablate.core.signals import StopRequest, request_stop_on_signal
from lmablate.core.torch_utils import eager
from lmablate.model import build_model
from lmablate.runs.complete_diagnostics import add_diagnostics_summary, check_trunk_diagnostics, open_directory
from lmablate.runs.config_file import write_config
from lmablate.runs.evaluate_run import evaluate_from_checkpoint, evaluate_trained
from lmablate.runs.prepared import PreparedRun, check_code
from lmablate.runs.progress_file import Heartbeat
from lmablate.runs.recovery import Attempts, free_memory
from lmablate.runs.result import initial_columns, outcome_columns
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.state import state_of
from lmablate.runs.tracking.account import resolve_mode
from lmablate.runs.tracking.client import announce, flatten, short_name
from lmablate.runs.wsd_branches import Trunk
from lmablate.schema.result import RunResult
from lmablate.training import distributed
from lmablate.training.checkpoint import keep_last
from lmablate.training.distributed import trainer_of
from lmablate.training.memory import keep_freed_memory, limit_gpu_memory
from lmablate.training.progress import Interrupted

log = logging.getLogger(__name__)


def execute(
    run: PreparedRun,
    on_status: Callable[[dict[str, Any]], None] = lambda status: None,
    on_stop: Callable[[], None] = lambda: None,
) -> RunResult:
    """Train, evaluate and store one run. Returns its result.

    Training continues from a checkpoint if there is one. On SIGTERM or SIGINT it writes a checkpoint and raises
    progress.Interrupted with the signal's number. `on_status` is called with every heartbeat, `on_stop` at once on the
    signal. A finished run that lacks a requested evaluation is evaluated from its checkpoint, and trained again only if
    that is gone. Raises locks.LockHeld if another process is training it. Handles runtime.on_oom and runtime.nan_restarts
    (recovery.py).
    """
    if (result := complete_evaluation(run)) is not None:
        return result
    attempts = Attempts(run.cfg)
    with request_stop_on_signal(on_stop) as stop:
        while (result := _attempt(run.with_runtime(attempts.cfg), attempts, on_status, stop)) is None:
            free_memory(run.cfg.runtime.device)
    return result


def _attempt(
    run: PreparedRun, attempts: Attempts, on_status: Callable[[dict[str, Any]], None], stop: StopRequest
) -> RunResult | None:
    """Train a run. Returns its result, or None if it is to go on from its last checkpoint."""
    try:
        session = RunSession(run, on_status)
    except Finished as finished:
        return finished.result
    with session:
        try:
            for record in session.trainer.records(lambda: stop.signal):
                session.store(record)
            if attempts.repeat(session.trainer):
                return None
            return session.finish(attempts.faults(session.trainer))
        except Exception as error:
            if stop.signal or session.trainer.ranks is not None or not attempts.halve(error):
                raise
    return None


class Finished(Exception):
    """The error of a session whose run another process has finished in the meantime."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(f"run {result.run_id} is done")
        self.result = result


def complete_evaluation(run: PreparedRun) -> RunResult | None:
    """Make the evaluation that a finished run lacks, and nothing else. Returns None for any other run."""
    state = state_of(run.cfg, run.directory)
    if state.lacks != ("evaluation",):
        return None
    return state.result if evaluate_from_checkpoint(run) else None


class RunSession:
    """One run at work: its lock, directory, trainer and heartbeat. Leaving it without `finish` marks it as failed.
    Raises locks.LockHeld if another process has the lock, and Finished if another one has finished the run."""

    def __init__(self, run: PreparedRun, on_status: Callable[[dict[str, Any]], None] = lambda status: None) -> None:
        cfg = run.cfg
        torch.set_num_threads(cfg.runtime.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        limit_gpu_memory(cfg)
        self.started = datetime.now(UTC)
        check_code(cfg)
        self.run, self.cfg = run, cfg
        self.lock = self._lock(run.directory)
        try:
            self.directory = open_directory(cfg, run.run_id)
            self._open(run, on_status)
        except BaseException:
            self.lock.release()
            raise

    def _lock(self, directory: RunDirectory) -> FileLock:
        """Lock the run's folder. Raises LockHeld, and Finished if another process has finished the run."""
        lock = FileLock.acquire(directory.create().lock_path)
        state = state_of(self.cfg, directory)
        if state.done and state.result is not None:
            lock.release()
            raise Finished(state.result)
        remove_leftovers(directory.path)
        return lock

    def _open(self, run: PreparedRun, on_status: Callable[[dict[str, Any]], None]) -> None:
        cfg, data = run.cfg, run.data
        write_config(cfg, self.directory.config_path)
        self.trunk = Trunk.of(cfg, data, self.directory)
        check_trunk_diagnostics(self.trunk, cfg)
        self.trainer = trainer_of(cfg)(build_model(cfg), data, cfg, self.directory.checkpoint_dir, self.trunk)
        self.heartbeat = Heartbeat(self.directory, cfg, on_status)
        self.trainer.on_resume = self._record_attempt
        self.columns = initial_columns(run)
        self.numerics: dict[str, Any] = {"gang": False, **distributed.numerics(cfg)}
        self.status = "failed"
        self._first = True
        if resolve_mode(cfg.runtime.wandb) != "disabled":
            self._announce()

    def _announce(self) -> None:
        """Write the wandb name and configuration of the run into its folder for the follower."""
        cfg, columns = self.cfg, {key: value for key, value in self.columns.items() if key != "choices"}
        announce(
            self.directory.path,
            name=short_name(cfg.choices, default_choices(), self.directory.run_id),
            group=cfg.sweep,
            project=cfg.runtime.wandb_project,
            config={**flatten(columns), **flatten(cfg.model_dump(exclude=set(BOOKKEEPING))), **cfg.choices},
        )

    def _record_attempt(self, step: int | None) -> None:
        """Append host, pid and start step to attempts.jsonl; step None is a fresh run."""
        attempt = {"host": platform.node(), "pid": os.getpid(), "started": self.started.isoformat(timespec="seconds")}
        self.directory.append_attempt(attempt | {"from": step})
        self.directory.log(
            f"{'begins' if step is None else f'goes on from step {step}'} on {attempt['host']}, process {attempt['pid']}"
        )
        self.heartbeat.begin(step)

    def store(self, record: dict[str, Any]) -> None:
        """Store one record of the trainer."""
        self.lock.check()
        if self._first and self.trunk is not None:
            self.trunk.adopt_history()
        if self._first:  # records of a killed attempt after its last checkpoint are written again
            self.directory.truncate_history(record["step"] - 1)
            self._first = False
        self.directory.append(record)
        self.heartbeat.beat(record)
        if record.get("val_loss") is not None:
            self.directory.log(f"step {record['step']}/{self.cfg.trainer.steps}: val loss {record['val_loss']:.4f}")

    def finish(self, faults: dict[str, Any] | None = None) -> RunResult:
        """Write the result, which marks the run as trained, then make the requested evaluation. `faults` are added to
        provenance."""
        self.lock.check()
        outcome = outcome_columns(self.trainer, self.cfg, self.started, self.numerics)
        outcome["provenance"] |= faults or {}
        result = add_diagnostics_summary(self.cfg, self.directory, RunResult(**self.columns, **outcome))
        self.directory.finish(result)
        keep_last(self.run.directory.checkpoint_dir, self.cfg.runtime.keep_checkpoints)
        self.status = result.status
        self.directory.log(self.status)
        if "evaluation" in state_of(self.cfg, self.run.directory).lacks:
            self.heartbeat.doing("evaluating at other lengths (runtime.evaluate_lengths)")
            with eager(self.trainer.compiled):
                evaluate_trained(self.trainer.model, self.cfg, self.trainer.data, self.directory)
        return result

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: object = None, trace: object = None) -> None:
        if kind is not None:
            message = (
                "stopped, with a checkpoint" if issubclass(kind, Interrupted) else f"failed: {kind.__name__}: {error}"
            )
            self.directory.log(message)
        try:
            if self.status != "failed":
                self.heartbeat.end(self.status)
        finally:
            self.lock.release()
