"""Build the row of a run from its configuration and its outcome."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.budget import flops_per_token, kv_bytes_per_token, parameters
from lmablate.core.settings import BOOKKEEPING
from lmablate.data.tasks.store import TaskData
from lmablate.runs.provenance import device_name, peak_memory_bytes, provenance
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.wsd_branches import trunk_id
from lmablate.schema.identity import SCIENCE_VERSION
from lmablate.training.compile import missing_compiler

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.runs.prepared import PreparedRun
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer


def initial_columns(run: PreparedRun) -> dict[str, Any]:
    """Return the columns of a row that are known before the run starts."""
    from lmablate.budget.measured import measures_flops
    from lmablate.objective import objective_of

    cfg, data = run.cfg, run.data
    counts = parameters(cfg)
    return {
        "run_id": run.run_id,
        "science_version": SCIENCE_VERSION,
        "choices": cfg.choices,
        "seed": cfg.seed,
        "init_seed": cfg.init_seed,
        "data_seed": cfg.data_seed,
        "n_params": counts.total,
        "n_params_non_embedding": counts.non_embedding,
        "n_params_active": counts.active,
        "tokens_per_param": cfg.tokens / counts.active_non_embedding + _of_parent(cfg),
        "flops_per_token": flops_per_token(cfg),
        "targets_per_token": objective_of(cfg).targets_per_token(cfg.model.context_length),
        "flops_counted": measures_flops(cfg) or None,
        "kv_bytes_per_token": kv_bytes_per_token(cfg),
        "solved": cfg.solved,
        "sweep": cfg.sweep,
        "arm": cfg.arm,
        "stage": cfg.stage,
        "code": cfg.code,
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
            **({"texts": {text.name: text.sizes for text in data.texts}} if data.texts else {}),
            **(data.row_fields() if isinstance(data, TaskData) else {}),
        },
    }


def epochs(tokens: int, data: TokenData) -> float | None:
    """Return how often a run of `tokens` reads its training text; None for a task whose examples are all new."""
    size = data.row_fields()["train_tokens"] if isinstance(data, TaskData) else len(data.train)
    return tokens / size if size else None


def _of_parent(cfg: RunConfig) -> float:
    """Return the tokens per parameter that the weights had seen before the run."""
    if cfg.trainer.init_from is None:
        return 0.0
    row = RunDirectory(Path(cfg.results_dir), cfg.trainer.init_from).read_result()
    return (row.tokens_per_param if row else None) or 0.0


def outcome_columns(trainer: Trainer, cfg: RunConfig, started: datetime, numerics: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that are known after the run has ended."""
    p = trainer.progress
    diverged = p.diverged_at_step is not None
    tokens = p.step * cfg.tokens_per_step
    return {
        "status": "diverged" if diverged else "completed",
        "tokens": tokens,
        "epochs": epochs(tokens, trainer.data),
        "train_loss": None if diverged and not math.isfinite(trainer.train_loss) else trainer.train_loss,
        "init_val_loss": p.init_val_loss if math.isfinite(p.init_val_loss) else None,
        "val_loss": None if diverged else p.evaluation.val_loss,
        "val_bpb": None if diverged else p.evaluation.val_bpb,
        "val_accuracy": None if diverged else p.evaluation.val_accuracy,
        "val_accuracy_by_length": None if diverged else p.evaluation.val_accuracy_by_length,
        **({} if diverged else p.evaluation.yardsticks or {}),
        **({} if diverged else p.evaluation.texts or {}),
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
    """Return why an eager run could not have been compiled, or None."""
    return None if trainer.compiled else trainer.compile_note or missing_compiler(trainer.device)
