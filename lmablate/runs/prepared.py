"""Prepare a run for training: load its data, settle its configuration, and compute its id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lmablate.core.errors import ConfigError
from lmablate.core.source_code import describe
from lmablate.data import TokenData, prepare
from lmablate.model.own_code import code_of
from lmablate.objective import reserved_ids
from lmablate.runs.init_from import with_parent
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import run_id
from lmablate.schema.run_config import RunConfig


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train: `cfg` has the vocabulary of `data`, and `run_id` is the hash of both."""

    cfg: RunConfig
    data: TokenData
    run_id: str

    @property
    def directory(self) -> RunDirectory:
        """Return the folder of the run, in its results_dir."""
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    def with_runtime(self, cfg: RunConfig) -> PreparedRun:
        """Return the same run with other ``runtime`` settings, which are not part of its id."""
        return replace(self, cfg=cfg)


def prepare_run(cfg: RunConfig, data: TokenData | None = None) -> PreparedRun:
    """Load the data of `cfg` unless it is given, and settle the settings that depend on it. Raises ConfigError for
    missing text, a preset with another vocabulary, and a parent that does not fit."""
    data = load_data(cfg) if data is None else data
    final = with_data(cfg, data)
    return PreparedRun(final, data, run_id(final, data))


def load_data(cfg: RunConfig) -> TokenData:
    """Open the token store of a run, and build it first if it is missing."""
    cache = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    return prepare(cfg.data, cfg.tokenizer, context_length=cfg.model.context_length, cache=cache)


def with_data(cfg: RunConfig, data: TokenData) -> RunConfig:
    """Return `cfg` with the vocabulary of its tokenizer plus the ids that the objective reserves (a mask, sentinels),
    and with the settings of its parent (trainer.init_from). Raises ConfigError for a preset at its own size with
    another vocabulary, and for a parent that does not fit."""
    check_vocabulary(cfg, data.vocab_size)
    own = cfg.objective.model_dump()
    size = data.vocab_size + reserved_ids(cfg.objective.kind, own, cfg.model.context_length)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": size})})
    return with_parent(cfg, data)


def foreign_vocabulary(cfg: RunConfig, size: int | None) -> bool:
    """Return whether a preset at its own size has a tokenizer of another size; False while that `size` is None (unknown)."""
    return cfg.published_vocab_size is not None and size is not None and size != cfg.published_vocab_size


def check_vocabulary(cfg: RunConfig, size: int | None) -> None:
    """Raise ConfigError if a preset at its own size has a tokenizer of another size."""
    if foreign_vocabulary(cfg, size):
        preset, tokenizer = cfg.choices.get("preset"), cfg.choices.get("tokenizer")
        raise ConfigError(
            f"preset={preset} has a vocabulary of {cfg.published_vocab_size:,} at its own size, and tokenizer={tokenizer} has "
            f"{size:,}: add shrink=tiny (or small, base), which takes the tokenizer's, or use tokenizer=pretrained with the published one"
        )


def check_code(cfg: RunConfig) -> None:
    """Raise ConfigError if the code of a component has changed since planning, so that the run id no longer describes it."""
    now = code_of(cfg)
    if (now or {}) != (cfg.code or {}):
        raise ConfigError(
            f"the code of this run has changed since it was planned ({describe({**(cfg.code or {}), **(now or {})})}): "
            "repeat the command, which gives the changed code a run of its own"
        )
