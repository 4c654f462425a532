"""One run, from a resolved configuration to a row on disk."""

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
from lmablate.core.signals import StopRequest, asked_to_stop
from lmablate.core.torch_utils import eager
from lmablate.model import build_model
from lmablate.runs.complete_diagnostics import check_trunk, open_directory, with_diagnostics
from lmablate.runs.config_file import write_config
from lmablate.runs.evaluate_run import at_the_end, evaluate_from_checkpoint
from lmablate.runs.prepared import PreparedRun, check_code
from lmablate.runs.progress_file import Heartbeat
from lmablate.runs.recovery import Attempts, free_memory
from lmablate.runs.result import facts_of, outcome_of
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
from lmablate.training.trainer import Interrupted

log = logging.getLogger(__name__)


def execute(
    run: PreparedRun,
    on_status: Callable[[dict[str, Any]], None] = lambda status: None,
    on_stop: Callable[[], None] = lambda: None,
) -> RunResult:
    """Train, evaluate and store one run; returns its result.

    Continues from a checkpoint if there is one. On SIGTERM or SIGINT a checkpoint is written and trainer.Interrupted
    raised, with the signal's number. `on_status` is called with every heartbeat, `on_stop` at once when the signal comes. A
    run that finished without an evaluation that is asked for is evaluated from its checkpoint, and trained again only where
    that is gone. Raises locks.Held where another process is training it. runtime.on_oom and runtime.nan_restarts are
    carried out here (recovery.py).
    """
    if (result := completed_later(run)) is not None:
        return result
    attempts = Attempts(run.cfg)
    with asked_to_stop(on_stop) as stop:
        while (result := _attempt(run.carried_out(attempts.cfg), attempts, on_status, stop)) is None:
            free_memory(run.cfg.runtime.device)
    return result


def _attempt(
    run: PreparedRun, attempts: Attempts, on_status: Callable[[dict[str, Any]], None], stop: StopRequest
) -> RunResult | None:
    """Train a run; returns its result, or None where it is to go on from its last checkpoint."""
    try:
        session = RunSession(run, on_status)
    except Finished as finished:
        return finished.result
    with session:
        try:
            for record in session.trainer.records(lambda: stop.signal):
                session.take(record)
            if attempts.repeat(session.trainer):
                return None
            return session.finish(attempts.facts(session.trainer))
        except Exception as error:
            if stop.signal or session.trainer.ranks is not None or not attempts.halve(error):
                raise
    return None


class Finished(Exception):
    """Another process has finished the run in the meantime."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(f"run {result.run_id} is done")
        self.result = result


def completed_later(run: PreparedRun) -> RunResult | None:
    """Make the evaluation that a finished run lacks, and nothing else; returns None for any other run."""
    state = state_of(run.cfg, run.directory)
    if state.lacks != ("evaluation",):
        return None
    return state.result if evaluate_from_checkpoint(run) else None


class RunSession:
    """One run at work: its lock, directory, trainer and heartbeat. Leaving it without `finish` marks it as failed.

    Raises locks.Held where another process has the lock, and Finished where one has made the run since.
    """

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
        """Nobody else works on this run from here on. Raises Held, and Finished where another process has made it."""
        lock = FileLock.take(directory.create().lock_path)
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
        check_trunk(self.trunk, cfg)
        self.trainer = trainer_of(cfg)(build_model(cfg), data, cfg, self.directory.checkpoint_dir, self.trunk)
        self.heartbeat = Heartbeat(self.directory, cfg, on_status)
        self.trainer.on_resume = self._sign_in
        self.facts = facts_of(run)
        self.numerics: dict[str, Any] = {"gang": False, **distributed.numerics(cfg)}
        self.status = "failed"
        self._first = True
        if resolve_mode(cfg.runtime.wandb) != "disabled":
            self._announce()

    def _announce(self) -> None:
        """Leave what wandb is to know of the run before it starts, for whoever follows it."""
        cfg, facts = self.cfg, {key: value for key, value in self.facts.items() if key != "choices"}
        announce(
            self.directory.path,
            name=short_name(cfg.choices, default_choices(), self.directory.run_id),
            group=cfg.sweep,
            project=cfg.runtime.wandb_project,
            config={**flatten(facts), **flatten(cfg.model_dump(exclude=set(BOOKKEEPING))), **cfg.choices},
        )

    def _sign_in(self, step: int | None) -> None:
        """Say who works on the run, and which step it goes on from; None: from its beginning."""
        said = {"host": platform.node(), "pid": os.getpid(), "started": self.started.isoformat(timespec="seconds")}
        self.directory.note_attempt(said | {"from": step})
        self.directory.log(
            f"{'begins' if step is None else f'goes on from step {step}'} on {said['host']}, process {said['pid']}"
        )
        self.heartbeat.begin(step)

    def take(self, record: dict[str, Any]) -> None:
        """Store one record of the trainer's."""
        self.lock.check()
        if self._first and self.trunk is not None:
            self.trunk.adopt_history()
        if self._first:  # whatever a killed attempt wrote after its last checkpoint is written again
            self.directory.truncate_history(record["step"] - 1)
            self._first = False
        self.directory.append(record)
        self.heartbeat.beat(record)
        if record.get("val_loss") is not None:
            self.directory.log(f"step {record['step']}/{self.cfg.trainer.steps}: val loss {record['val_loss']:.4f}")

    def finish(self, faults: dict[str, Any] | None = None) -> RunResult:
        """Write the result, which marks the run as trained; then evaluate it further where that is asked for. `faults` go
        into its provenance."""
        self.lock.check()
        outcome = outcome_of(self.trainer, self.cfg, self.started, self.numerics)
        outcome["provenance"] |= faults or {}
        result = with_diagnostics(self.cfg, self.directory, RunResult(**self.facts, **outcome))
        self.directory.finish(result)
        keep_last(self.run.directory.checkpoint_dir, self.cfg.runtime.keep_checkpoints)
        self.status = result.status
        self.directory.log(self.status)
        if "evaluation" in state_of(self.cfg, self.run.directory).lacks:
            self.heartbeat.doing("evaluating at other lengths (runtime.evaluate_lengths)")
            with eager(self.trainer.compiled):
                at_the_end(self.trainer.model, self.cfg, self.trainer.data, self.directory)
        return result

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: object = None, trace: object = None) -> None:
        if kind is not None:
            said = (
                "stopped, with a checkpoint" if issubclass(kind, Interrupted) else f"failed: {kind.__name__}: {error}"
            )
            self.directory.log(said)
        try:
            if self.status != "failed":
                self.heartbeat.end(self.status)
        finally:
            self.lock.release()
