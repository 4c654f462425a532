"""One run, from a resolved configuration to a row on disk."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.allocator import keep_freed_memory
from lmablate.axes import default_choices
from lmablate.branches import Trunk, trunk_id
from lmablate.diagnostics.completion import check_trunk, open_directory, told
from lmablate.diagnostics.settings import is_complete
from lmablate.errors import ConfigError
from lmablate.evaluations import lacks
from lmablate.identity import SCIENCE_VERSION, run_id
from lmablate.parent import with_parent
from lmablate.provenance import device_name, peak_memory_bytes, provenance
from lmablate.run_directory import RunDirectory
from lmablate.settings import BOOKKEEPING
from lmablate.stopping import asked_to_stop

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData
    from lmablate.trainer import Trainer

log = logging.getLogger(__name__)


def load_data(cfg: RunConfig) -> TokenData:
    """The token store of a run, built if it is not there yet."""
    from lmablate.data import prepare

    cache = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    return prepare(cfg.data, cfg.tokenizer, context_length=cfg.model.context_length, cache=cache)


def with_data(cfg: RunConfig, data: TokenData) -> RunConfig:
    """The same configuration with the vocabulary that the tokenizer really has, and with what its parent decides
    (trainer.init_from). Raises ConfigError for a preset at its own size whose vocabulary is another, and for a parent that
    does not fit."""
    check_vocabulary(cfg, data.vocab_size)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": data.vocab_size})})
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


def execute(
    cfg: RunConfig, data: TokenData, on_status: Callable[[dict[str, Any]], None] = lambda status: None
) -> dict[str, Any]:
    """Train, evaluate and store one run; returns its result row.

    Continues from a checkpoint if there is one. On SIGTERM or SIGINT a checkpoint is written and trainer.Interrupted
    raised, with the signal's number. `on_status` sees every heartbeat. A run that finished without an evaluation that is
    asked for is evaluated from its checkpoint, and trained again only where that is gone.
    """
    if (row := completed_later(cfg, data)) is not None:
        return row
    with asked_to_stop() as stop, RunSession(cfg, data, on_status) as session:
        for record in session.trainer.records(lambda: stop.signal):
            session.take(record)
        return session.finish()


def completed_later(cfg: RunConfig, data: TokenData) -> dict[str, Any] | None:
    """The row of a finished run that lacked nothing but an evaluation, which is made; None for any other run."""
    cfg = with_data(cfg, data)
    directory = RunDirectory(Path(cfg.results_dir), run_id(cfg, data))
    row = directory.read_result()
    if not lacks(cfg, directory.path, row) or not is_complete(directory, cfg):
        return None
    from lmablate.evaluate.of_run import make_up

    return row if make_up(cfg, data, directory) else None


class RunSession:
    """One run at work: its directory, trainer, tracker and heartbeat. Leaving it without `finish` marks it as failed."""

    def __init__(
        self, cfg: RunConfig, data: TokenData, on_status: Callable[[dict[str, Any]], None] = lambda status: None
    ) -> None:
        import torch

        from lmablate.model import build_model
        from lmablate.tracking import flatten, open_tracker, resolve_mode, short_name
        from lmablate.trainer import Trainer

        torch.set_num_threads(cfg.runtime.threads)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        self.started = datetime.now(UTC)
        self.cfg = cfg = with_data(cfg, data)
        identity = run_id(cfg, data)
        self.directory = open_directory(cfg, identity)
        write_config(cfg, self.directory.config_path)
        self.trunk = Trunk.of(cfg, data, self.directory)
        check_trunk(self.trunk, cfg)
        self.trainer = Trainer(build_model(cfg), data, cfg, self.directory.checkpoint_dir, self.trunk)
        self.heartbeat = Heartbeat(self.directory, cfg, on_status)
        self.facts = _facts(cfg, data, identity)
        self.numerics: dict[str, Any] = {"gang": False}
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

    def take(self, record: dict[str, Any]) -> None:
        """Store one record of the trainer's."""
        if self._first and self.trunk is not None:
            self.trunk.adopt_history()
        if self._first:  # whatever a killed attempt wrote after its last checkpoint is written again
            self.directory.truncate_history(record["step"] - 1)
            self._first = False
        self.directory.append(record)
        self.tracker.log(record)
        self.heartbeat.beat(record)

    def finish(self) -> dict[str, Any]:
        """Write the result row, which marks the run as trained; then evaluate it further where that is asked for."""
        outcome = _outcome(self.trainer, self.cfg, self.started, self.numerics)
        result = told(self.cfg, self.directory, {**self.facts, **outcome})
        self.directory.finish(result)
        self.status = result["status"]
        self.summary = {key: result[key] for key in _SUMMARY}
        if lacks(self.cfg, self.directory.path, result):
            from lmablate.compilation import eager
            from lmablate.evaluate.of_run import at_the_end

            with eager(self.trainer.compiled):
                at_the_end(self.trainer.model, self.cfg, self.trainer.data, self.directory)
        return result

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.tracker.finish(self.status, self.summary)
        if self.status != "failed":
            self.heartbeat.end(self.status)


_SUMMARY = (
    "status",
    "val_loss",
    "val_bpb",
    "val_accuracy",
    "train_loss",
    "diverged_at_step",
    "n_params",
    "n_params_non_embedding",
    "flops_per_token",
    "tokens",
)


def write_config(cfg: RunConfig, path: Path) -> None:
    """The resolved configuration as YAML; ``read_config`` gives it back."""
    import yaml

    from lmablate.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(cfg.model_dump(), sort_keys=False))


def read_config(path: Path) -> RunConfig:
    """The RunConfig of a run directory."""
    import yaml

    from lmablate.config.schema import SCHEMA_VERSION, RunConfig

    raw = yaml.safe_load(path.read_text())
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version}, and this lmablate reads {SCHEMA_VERSION}: use the release that wrote it"
        )
    return RunConfig.model_validate(raw)


def _facts(cfg: RunConfig, data: TokenData, identity: str) -> dict[str, Any]:
    """What is known of a run before it starts."""
    from lmablate.budget import flops_per_token, kv_bytes_per_token, parameters
    from lmablate.data.skills.store import SkillData
    from lmablate.objective import objective_of

    counts = parameters(cfg)
    return {
        "run_id": identity,
        "science_version": SCIENCE_VERSION,
        "choices": cfg.choices,
        "seed": cfg.seed,
        "init_seed": cfg.init_seed,
        "data_seed": cfg.data_seed,
        "n_params": counts.total,
        "n_params_non_embedding": counts.non_embedding,
        "flops_per_token": flops_per_token(cfg),
        "targets_per_token": objective_of(cfg).targets_per_token(cfg.model.context_length),
        "kv_bytes_per_token": kv_bytes_per_token(cfg),
        "solved": cfg.solved,
        "sweep": cfg.sweep,
        "arm": cfg.arm,
        "stage": cfg.stage,
        "trunk": trunk_id(cfg, data),
        "data": {
            "fingerprint": data.fingerprint,
            "tokenizer": data.tokenizer_fingerprint,
            "vocab_size": data.vocab_size,
            "train_tokens": len(data.train),
            "val_bytes": data.val_bytes,
            "val_tokens": len(data.val),
            "unigram_val_loss": data.unigram_val_loss,
            "entropy_floor": data.entropy_floor,
            **(data.facts() if isinstance(data, SkillData) else {}),
        },
    }


def _outcome(trainer: Trainer, cfg: RunConfig, started: datetime, numerics: dict[str, Any]) -> dict[str, Any]:
    """What became of a run."""
    p = trainer.progress
    diverged = p.diverged_at_step is not None
    tokens = p.step * cfg.tokens_per_step
    return {
        "status": "diverged" if diverged else "completed",
        "tokens": tokens,
        "train_loss": None if diverged and not math.isfinite(trainer.train_loss) else trainer.train_loss,
        "init_val_loss": p.init_val_loss if math.isfinite(p.init_val_loss) else None,
        "val_loss": None if diverged else p.evaluation.val_loss,
        "val_bpb": None if diverged else p.evaluation.val_bpb,
        "val_accuracy": None if diverged else p.evaluation.val_accuracy,
        "val_accuracy_by_length": None if diverged else p.evaluation.val_accuracy_by_length,
        **({} if diverged else p.evaluation.yardsticks or {}),
        "diverged_at_step": p.diverged_at_step,
        "tokens_per_second": tokens / max(p.seconds, 1e-9),
        "wall_seconds": p.seconds,
        "peak_memory_bytes": peak_memory_bytes(cfg.runtime.device),
        "numerics": {
            "device": device_name(cfg.runtime.device),
            "precision": cfg.trainer.precision,
            "compiled": trainer.compiled,
            **numerics,
            "threads": cfg.runtime.threads,
            "microbatch_size": cfg.runtime.microbatch_size,
        },
        "config": cfg.model_dump(exclude=set(BOOKKEEPING)),
        "provenance": {**provenance(cfg, started), "compile_note": _compile_note(trainer)},
    }


def _compile_note(trainer: Trainer) -> str | None:
    """Why an eager run could not have been compiled."""
    from lmablate.compilation import missing_compiler

    return None if trainer.compiled else trainer.compile_note or missing_compiler(trainer.device)


class Heartbeat:
    """status.json of a run: what a sweep's display reads."""

    def __init__(self, directory: RunDirectory, cfg: RunConfig, on_status: Callable[[dict[str, Any]], None]) -> None:
        self.directory, self.steps, self.on_status = directory, cfg.trainer.steps, on_status
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "step": 0, "steps": self.steps}
        self._write()

    def beat(self, record: dict[str, Any]) -> None:
        self.state |= {
            key: record[key]
            for key in ("step", "train_loss", "val_loss", "val_accuracy", "tokens_per_second")
            if key in record
        }
        self._write()

    def end(self, status: str) -> None:
        self.state["state"] = status
        self._write()

    def _write(self) -> None:
        self.directory.write_status({**self.state, "time": time.time()})
        self.on_status(dict(self.state))
