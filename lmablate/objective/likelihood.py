"""The cross entropy of the targets that count, from logits or from the head's input."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.objective.chunked_cross_entropy import CHUNK, linear_cross_entropy, worth_chunking
from lmablate.objective.language_model import LanguageModel

IGNORE = -100  # a target that does not count


class Loss(NamedTuple):
    """The `objective` that the optimizer minimises, and `nats`, the cross entropy per target: scalars, or ``[K]`` with members."""

    objective: Tensor
    nats: Tensor


def likelihood(model: nn.Module, inputs: Tensor, targets: Tensor, prefix: Tensor | None, z_loss: Tensor | None) -> Loss:
    """Return the loss on one batch (see base.Batch), with one `z_loss` per member. A model with logits for the last tokens of a text
    only (its decoder's) has targets there only."""
    given = (inputs,) if prefix is None else (inputs, prefix)
    rows = targets.shape[-2] * targets.shape[-1]
    # The chunked loss does not support a bias of the logits.
    if _has_head(model) and model.head.bias is None and worth_chunking(rows, vocab_size(model)):
        hidden = model.hidden(*given)
        return Loss(*_chunked(model, hidden, targets[..., -hidden.shape[-2] :], z_loss))
    logits = model(*given).float()
    return cross_entropy(logits, targets[..., -logits.shape[-2] :], z_loss)


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: Tensor | None) -> Loss:
    """Return the loss from float logits ``[..., B, T, V]``."""
    counted = (targets != IGNORE).to(logits.dtype).flatten(-2)
    count = counted.sum(-1)
    # Summed within a member, so that the order is the same solo and in a gang.
    each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    nats = each.view(counted.shape).sum(-1) / count
    if z_loss is None:
        return Loss(nats, nats)
    log_z2 = (logits.logsumexp(-1).square().flatten(-2) * counted).sum(-1) / count
    return Loss(nats + z_loss * log_z2, nats)


def vocab_size(model: LanguageModel) -> int:
    """Return the number of logits per token."""
    return model.embedding.weight.shape[-2]


def _has_head(model: Any) -> TypeGuard[LanguageModel]:
    """Return True if hidden states and logits can be computed separately."""
    return hasattr(model, "hidden") and hasattr(model, "head")


def _chunked(model: LanguageModel, hidden: Tensor, targets: Tensor, z_loss: Tensor | None) -> tuple[Tensor, Tensor]:
    head = model.embedding if model.head.proj is None else model.head.proj
    return linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        z_loss=z_loss,
        soft_cap=model.final_soft_cap,
        compute_dtype=head.compute_dtype,
        ignore_index=IGNORE,
    )


def summed_nats(model: LanguageModel, hidden: Tensor, targets: list[Tensor]) -> list[float]:
    """Return the summed cross entropy of ``[N, D]`` hidden states for each of `targets`, with no more logits at once than in training."""
    rows = CHUNK if worth_chunking(len(hidden), vocab_size(model)) else len(hidden)
    sums: list[list[Tensor]] = [[] for _ in targets]
    for first in range(0, len(hidden), rows):
        log_p = F.log_softmax(model.logits(hidden[first : first + rows]).float(), -1)
        for mine, y in zip(sums, targets, strict=True):
            mine.append(F.nll_loss(log_p, y[first : first + rows], ignore_index=IGNORE, reduction="sum"))
    return [float(torch.stack(mine).sum()) for mine in sums]
