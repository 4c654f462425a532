"""Top-1 accuracy, and the unigram baseline on the same targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from lmablate.objective.base import Batch, ValidationText
from lmablate.objective.likelihood import IGNORE

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


def accuracy_and_unigram(model: LanguageModel, batch: Batch, text: ValidationText, name: str) -> dict[str, float]:
    """Return the fraction of targets of `batch` that are the likeliest token, as `name`, and the unigram baseline. The baseline is the
    unigram model of the training text: its accuracy ``<name>_unigram`` and mean nats ``val_loss_unigram``."""

    def logits(part: Batch) -> Tensor:
        given = (part.inputs,) if part.prefix is None else (part.inputs, part.prefix)
        return model.logits(model.hidden(*given))

    targets = batch.targets[batch.targets != IGNORE].numpy()
    return {
        name: n_correct(logits, batch, text) / len(targets),
        f"{name}_unigram": float((targets == text.log_p.argmax()).mean()),
        "val_loss_unigram": float(-text.log_p[targets].mean()),
    }


def n_correct(logits: Callable[[Batch], Tensor], batch: Batch, text: ValidationText) -> int:
    """Return how many targets of `batch` have the largest of their logits."""
    right = 0
    for part in batch.split(text.batch_size):
        moved = part.to(text.device)
        scores = logits(moved)
        targets = moved.targets[..., -scores.shape[-2] :]
        right += int(((scores.argmax(-1) == targets) & (targets != IGNORE)).sum())
    return right
