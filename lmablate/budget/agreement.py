"""The check that parts state as many parameters as they build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lmablate.budget import parameters
from lmablate.budget.measured import disagreements
from lmablate.core.errors import ConfigError
from lmablate.model import build_model

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def check(cfg: RunConfig) -> None:
    """Raise ConfigError if the model of `cfg` cannot be built, or has other parameters than its parts state; allocates nothing."""
    try:
        _check_count(cfg, build_model(cfg, device="meta"))
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        chosen = ", ".join(f"{axis}={option}" for axis, option in cfg.choices.items())
        raise ConfigError(f"the model cannot be built from {chosen}: {error}") from error


def _check_count(cfg: RunConfig, model: nn.Module) -> None:
    """Raise ConfigError unless the stated parameters, on which budgets and tables rely, are those built."""
    predicted, built = parameters(cfg).total, sum(p.numel() for p in model.parameters())
    if predicted == built:
        return
    blame = [
        f"{axis}={cfg.choices.get(axis)} ({target.__module__}.{target.__qualname__}) says {stated:,} parameters of one and builds "
        f"{own:,}: mend its closed form, or leave that out, and it is counted by building"
        for axis, target, stated, own in disagreements(cfg)
    ]
    raise ConfigError(
        f"the model has {built:,} parameters, and its parts say {predicted:,}: "
        + (
            "; ".join(blame)
            or "layers that share a weight, or differ from one another, must be built as they are counted"
        )
    )
