"""The lengths at which a model can be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.schema.evaluation_windows import KEY_PREFIX, Protocol, requested_protocols

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def check_lengths(cfg: RunConfig, plan: Sequence[Protocol], *, keys: str = "--") -> None:
    """Raise ConfigError for lengths at which the model of `cfg` has no positions, and for models that do not read left to right."""
    if cfg.tokenizer is None:
        raise ConfigError(
            f"{keys}lengths: data={cfg.choices.get('data')} is a task whose examples have a length of their own: only text can be "
            "read through other windows"
        )
    longest, table = max(plan).length, cfg.model.context_length
    if components.target(cfg.posemb, "posemb").bounded and longest > table:
        raise ConfigError(
            f"{keys}lengths: posemb={cfg.choices['posemb']} has positions for {table} tokens, and {longest} are asked for: "
            f"it can be evaluated at the training length alone ({keys}lengths={'[1]' if keys != '--' else '1'})"
        )
    if cfg.objective.kind != "causal":
        raise ConfigError(
            f"{keys}lengths: objective={cfg.objective.kind} does not predict a text from left to right, token by token: "
            "only runs of objective=causal can be evaluated so"
        )


def check_requested(cfg: RunConfig) -> None:
    """Raise ConfigError if the evaluation at the end of training is impossible."""
    if plan := requested_protocols(cfg):
        check_lengths(cfg, plan, keys=KEY_PREFIX)
