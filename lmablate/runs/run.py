"""One run, from a resolved configuration to a row on disk."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.axes import default_choices
from lmablate.core.errors import ConfigError
from lmablate.core.files import remove_leftovers
from lmablate.core.locks import FileLock
from lmablate.core.settings import BOOKKEEPING
from lmablate.core.signals import StopRequest, asked_to_stop
from lmablate.core.source_code import describe
from lmablate.model.own_code import code_of
from lmablate.runs.complete_diagnostics import check_trunk, open_directory, told
from lmablate.runs.config_file import read_config, write_config
from lmablate.runs.evaluation_files import lacks
from lmablate.runs.init_from import with_parent
from lmablate.runs.progress_file import Heartbeat
from lmablate.runs.recovery import Attempts, free_memory
from lmablate.runs.result import SUMMARY, facts_of, outcome_of
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.state import is_complete
from lmablate.runs.wsd_branches import Trunk
from lmablate.schema.identity import run_id
from lmablate.training.memory import keep_freed_memory, limit_gpu_memory

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

__all__ = ["RunSession", "completed_later", "execute", "load_data", "read_config", "with_data", "write_config"]
log = logging.getLogger(__name__)


def load_data(cfg: RunConfig) -> TokenData:
    """The token store of a run, built if it is not there yet."""
    from lmablate.data import prepare

    cache = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    return prepare(cfg.data, cfg.tokenizer, context_length=cfg.model.context_length, cache=cache)


def with_data(cfg: RunConfig, data: TokenData) -> RunConfig:
    """The same configuration with the vocabulary that the tokenizer really has, the ids that the objective adds to it (a mask,
    sentinels), and with what its parent decides (trainer.init_from). Raises ConfigError for a preset at its own size whose
    vocabulary is another, and for a parent that does not fit."""
    from lmablate.objective import reserved_ids

    check_vocabulary(cfg, data.vocab_size)
    own = cfg.objective.model_dump()
    size = data.vocab_size + reserved_ids(cfg.objective.kind, own, cfg.model.context_length)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": size})})
    return with_parent(cfg, data)


def foreign_vocabulary(cfg: RunConfig, found: int | None) -> bool:
    """Is this a preset at its own size, with a tokenizer of another? `found` is None while that is not known."""
    return cfg.published_vocab_size is not None and found is not None and found != cfg.published_vocab_size


def check_vocabulary(cfg: RunConfig, found: int | None) -> None:
    """Raise ConfigError for a preset at its own size whose tokenizer has another."""
    if foreign_vocabulary(cfg, found):
        preset, tokenizer = cfg.choices.get("preset"), cfg.choices.get("tokenizer")
        raise ConfigError(
            f"preset={preset} has a vocabulary of {cfg.published_vocab_size:,} at its own size, and tokenizer={tokenizer} has "
            f"{found:,}: add shrink=tiny (or small, base), which takes the tokenizer's, or use tokenizer=pretrained with the published one"
        )


def check_code(cfg: RunConfig) -> None:
    """Raise ConfigError where the code of a part is no longer what the run was planned with: its id would be that of other code."""
    now = code_of(cfg)
    if (now or {}) != (cfg.code or {}):
        raise ConfigError(
            f"the code of this run has changed since it was planned ({describe({**(cfg.code or {}), **(now or {})})}): "
            "repeat the command, which gives the changed code a run of its own"
        )


def execute(
    cfg: RunConfig,
    data: TokenData,
    on_status: Callable[[dict[str, Any]], None] = lambda status: None,
    on_stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train, evaluate and store one run; returns its result row.

    Continues from a checkpoint if there is one. On SIGTERM or SIGINT a checkpoint is written and trainer.Interrupted
    raised, with the signal's number. `on_status` sees every heartbeat, `on_stop` hears of the signal at once. A run that
    finished without an evaluation that is asked for is evaluated from its checkpoint, and trained again only where that is
    gone. Raises locks.Held where another process is training it. What runtime.on_oom and runtime.nan_restarts ask for is
    done here (faults.py).
    """
    if (row := completed_later(cfg, data)) is not None:
        return row
    attempts = Attempts(cfg)
    with asked_to_stop(on_stop) as stop:
        while (row := _attempt(attempts, data, on_status, stop)) is None:
            free_memory(cfg.runtime.device)
    return row


def _attempt(
    attempts: Attempts, data: TokenData, on_status: Callable[[dict[str, Any]], None], stop: StopRequest
) -> dict[str, Any] | None:
    """The row of the run, or None where it is to go on from its last checkpoint."""
    try:
        session = RunSession(attempts.cfg, data, on_status)
    except Finished as finished:
        return finished.row
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

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(f"run {row['run_id']} is done")
        self.row = row


def completed_later(cfg: RunConfig, data: TokenData) -> dict[str, Any] | None:
    """The row of a finished run that lacked nothing but an evaluation, which is made; None for any other run."""
    cfg = with_data(cfg, data)
    directory = RunDirectory(Path(cfg.results_dir), run_id(cfg, data))
    row = directory.read_result()
    if not lacks(cfg, directory.path, row) or not is_complete(directory, cfg):
        return None
    from lmablate.runs.evaluate_run import make_up

    return row if make_up(cfg, data, directory) else None


class RunSession:
    """One run at work: its lock, directory, trainer, tracker and heartbeat. Leaving it without `finish` marks it as failed.

    Raises locks.Held where another process has the lock, and Finished where one has made the run since.
    """

    def __init__(
        self, cfg: RunConfig, data: TokenData, on_status: Callable[[dict[str, Any]], None] = lambda status: None
    ) -> None:
        import torch

        torch.set_num_threads(cfg.runtime.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        limit_gpu_memory(cfg)
        self.started = datetime.now(UTC)
        check_code(cfg)
        self.cfg = cfg = with_data(cfg, data)
        identity = run_id(cfg, data)
        self.lock = self._lock(RunDirectory(Path(cfg.results_dir), identity))
        try:
            self.directory = open_directory(cfg, identity)
            self._open(data, identity, on_status)
        except BaseException:
            self.lock.release()
            raise

    def _lock(self, directory: RunDirectory) -> FileLock:
        """Nobody else works on this run from here on. Raises Held, and Finished where another process has made it."""
        lock = FileLock.take(directory.create().lock_path)
        row = directory.read_result()
        if row is not None and is_complete(directory, self.cfg) and not lacks(self.cfg, directory.path, row):
            lock.release()
            raise Finished(row)
        remove_leftovers(directory.path)
        return lock

    def _open(self, data: TokenData, identity: str, on_status: Callable[[dict[str, Any]], None]) -> None:
        from lmablate.model import build_model
        from lmablate.runs.tracking.worker import flatten, open_tracker, resolve_mode, short_name
        from lmablate.training import distributed
        from lmablate.training.distributed import trainer_of

        cfg = self.cfg
        write_config(cfg, self.directory.config_path)
        self.trunk = Trunk.of(cfg, data, self.directory)
        check_trunk(self.trunk, cfg)
        self.trainer = trainer_of(cfg)(build_model(cfg), data, cfg, self.directory.checkpoint_dir, self.trunk)
        self.heartbeat = Heartbeat(self.directory, cfg, on_status)
        self.trainer.on_begin = self._sign_in
        self.facts = facts_of(cfg, data, identity)
        self.numerics: dict[str, Any] = {"gang": False, **distributed.numerics(cfg)}
        self.status = "failed"
        self.summary: dict[str, Any] = {}
        self._first = True
        science = cfg.model_dump(exclude=set(BOOKKEEPING))
        self.tracker = open_tracker(
            resolve_mode(cfg.runtime.wandb),
            run_id=identity,
            name=short_name(cfg.choices, default_choices(), identity),
            group=cfg.sweep,
            project=cfg.runtime.wandb_project,
            config={
                **flatten({k: v for k, v in self.facts.items() if k != "choices"}),
                **flatten(science),
                **cfg.choices,
            },
            directory=self.directory.path,
            resume=self.directory.checkpoint_dir.exists(),
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
        self.tracker.log(record)
        self.heartbeat.beat(record)
        if record.get("val_loss") is not None:
            self.directory.log(f"step {record['step']}/{self.cfg.trainer.steps}: val loss {record['val_loss']:.4f}")

    def finish(self, faults: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the result row, which marks the run as trained; then evaluate it further where that is asked for.
        `faults`: what the row's provenance says of them."""
        from lmablate.training.checkpoint import keep_last

        self.lock.check()
        outcome = outcome_of(self.trainer, self.cfg, self.started, self.numerics)
        outcome["provenance"] |= faults or {}
        result = told(self.cfg, self.directory, {**self.facts, **outcome})
        self.directory.finish(result)
        keep_last(self.directory.path / "checkpoint", self.cfg.runtime.keep_checkpoints)
        self.status = result["status"]
        self.summary = {key: result[key] for key in SUMMARY}
        self.directory.log(self.status)
        if lacks(self.cfg, self.directory.path, result):
            self.heartbeat.doing("evaluating at other lengths (runtime.evaluate_lengths)")
            from lmablate.core.torch_utils import eager
            from lmablate.runs.evaluate_run import at_the_end

            with eager(self.trainer.compiled):
                at_the_end(self.trainer.model, self.cfg, self.trainer.data, self.directory)
        return result

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: object = None, trace: object = None) -> None:
        from lmablate.training.trainer import Interrupted

        if kind is not None:
            said = (
                "stopped, with a checkpoint" if issubclass(kind, Interrupted) else f"failed: {kind.__name__}: {error}"
            )
            self.directory.log(said)
        try:
            self.tracker.finish(self.status, self.summary)
            if self.status != "failed":
                self.heartbeat.end(self.status)
        finally:
            self.lock.release()
