"""How often the likeliest token is right, and what a model of single tokens reaches on the same targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from lmablate.objective.base import Batch, Held
from lmablate.objective.likelihood import IGNORE

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


def told(model: LanguageModel, batch: Batch, text: Held, name: str) -> dict[str, float]:
    """The share of the targets of `batch` that are the likeliest token, as `name`; and under the unigram model of the training text
    the same, ``<name>_unigram``, and their mean nats, ``val_loss_unigram``."""

    def logits(part: Batch) -> Tensor:
        given = (part.inputs,) if part.prefix is None else (part.inputs, part.prefix)
        return model.logits(model.hidden(*given))

    targets = batch.targets[batch.targets != IGNORE].numpy()
    return {
        name: right_answers(logits, batch, text) / len(targets),
        f"{name}_unigram": float((targets == text.log_p.argmax()).mean()),
        "val_loss_unigram": float(-text.log_p[targets].mean()),
    }


def right_answers(logits: Callable[[Batch], Tensor], batch: Batch, text: Held) -> int:
    """How many targets of `batch` have the largest of their logits."""
    right = 0
    for part in batch.split(text.batch_size):
        there = part.to(text.device)
        found = logits(there)
        targets = there.targets[..., -found.shape[-2] :]
        right += int(((found.argmax(-1) == targets) & (targets != IGNORE)).sum())
    return right
