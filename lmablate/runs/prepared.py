"""A run that is ready to be trained: its data, its final configuration, and its id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.core.errors import ConfigError
from lmablate.core.source_code import describe
from lmablate.data import prepare
from lmablate.model.own_code import code_of
from lmablate.objective import reserved_ids
from lmablate.runs.init_from import with_parent
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import run_id

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig


@dataclass(frozen=True)
class PreparedRun:
    """One run: `cfg` has the vocabulary of `data`, and `run_id` is the hash of both."""

    cfg: RunConfig
    data: TokenData
    run_id: str

    @property
    def directory(self) -> RunDirectory:
        """The folder of the run, in its results_dir."""
        return RunDirectory(Path(self.cfg.results_dir), self.run_id)

    def carried_out(self, cfg: RunConfig) -> PreparedRun:
        """Return the same run with other settings of how it is carried out (``runtime``), which its id does not know."""
        return replace(self, cfg=cfg)


def prepare_run(cfg: RunConfig, data: TokenData | None = None) -> PreparedRun:
    """Load the data of `cfg` if it is not given, and settle what depends on it.

    Raises ConfigError for text that is missing, a preset whose vocabulary is another, and a parent that does not fit.
    """
    data = load_data(cfg) if data is None else data
    final = with_data(cfg, data)
    return PreparedRun(final, data, run_id(final, data))


def load_data(cfg: RunConfig) -> TokenData:
    """Open the token store of a run; build it if it is not there yet."""

    cache = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    return prepare(cfg.data, cfg.tokenizer, context_length=cfg.model.context_length, cache=cache)


def with_data(cfg: RunConfig, data: TokenData) -> RunConfig:
    """The same configuration with the vocabulary that the tokenizer really has, the ids that the objective adds to it (a mask,
    sentinels), and with what its parent decides (trainer.init_from). Raises ConfigError for a preset at its own size whose
    vocabulary is another, and for a parent that does not fit."""

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
