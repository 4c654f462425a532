"""Group ``objective``: training objectives.

An objective declares what is read and which targets count. `batch` converts the texts of a step to training input; `validation` and
`yardsticks` return what is measured. Trainer, gang and evaluation pass these on and name no objective. Each has its own file here and
in ``conf/objective``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmablate.objective.base import Batch, Objective, ValidationText, stacked, z_losses
from lmablate.objective.causal import Causal
from lmablate.objective.likelihood import IGNORE, Loss, vocab_size
from lmablate.objective.mlm import MaskedLM
from lmablate.objective.prefix import Prefix
from lmablate.objective.rtd import ReplacedTokens
from lmablate.objective.span_corruption import SpanCorruption

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "prefix": Prefix,
    "mlm": MaskedLM,
    "rtd": ReplacedTokens,
    "span_corruption": SpanCorruption,
}

__all__ = [
    "IGNORE",
    "OBJECTIVES",
    "Batch",
    "Causal",
    "Loss",
    "MaskedLM",
    "Objective",
    "Prefix",
    "ReplacedTokens",
    "SpanCorruption",
    "ValidationText",
    "objective_of",
    "stacked",
    "vocab_size",
    "z_losses",
]


def objective_of(cfg: RunConfig) -> Objective:
    """Return the objective that `cfg` names. Raises ConfigError for settings without meaning at its context length."""
    own = cfg.objective.model_dump(exclude={"kind"}, exclude_none=True)
    objective = OBJECTIVES[cfg.objective.kind](z_loss=cfg.stability.z_loss, **own)
    objective.vocab_size = cfg.model.vocab_size
    objective.check(cfg.model.context_length)
    return objective


def reserved_ids(kind: str, own: dict[str, Any], context_length: int) -> int:
    """Return how many ids an objective with settings `own` adds to those of the tokenizer."""
    given = {key: value for key, value in own.items() if key != "kind" and value is not None}
    return OBJECTIVES[kind](z_loss=None, **given).reserved(context_length)
