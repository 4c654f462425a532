"""What a model is trained to do: ``objective=causal`` predicts the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.cross_entropy import linear_cross_entropy, worth_chunking
from lmablate.model.transformer import TransformerLM

IGNORE = -100  # a target that is padding


class Loss(NamedTuple):
    """`objective` is what the optimizer minimises, `nats` the cross entropy a token: scalars, or ``[K]`` with members."""

    objective: Tensor
    nats: Tensor


class Causal(nn.Module):
    """Mean cross entropy of the next token in nats, plus ``z_loss * mean(log^2 Z)`` where that is on (PaLM, arXiv
    2204.02311, section 5). ``mask`` declares which tokens a position may read."""

    mask: ClassVar[str] = "causal"

    def __init__(self, *, z_loss: float | None) -> None:
        super().__init__()
        self.z_loss = z_loss

    def forward(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Loss:
        """`inputs` and `targets` are int64 ``[B, T]``."""
        z_loss = None if self.z_loss is None else torch.full((), self.z_loss, device=inputs.device)
        return _loss(model, inputs, targets, z_loss)


def member_losses(objectives: Sequence[Causal], model: nn.Module, inputs: Tensor, targets: Tensor) -> Loss:
    """The losses of the members of a gang, each as its own objective alone would give it; ``[K, B, T]`` tokens."""
    weights = [own.z_loss for own in objectives]
    z_loss = None if None in weights else torch.tensor(weights, device=inputs.device)
    return _loss(model, inputs, targets, z_loss)


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor, z_loss: Tensor | None) -> Loss:
    rows = targets.shape[-2] * targets.shape[-1]
    # The chunked loss knows no bias of the logits.
    if isinstance(model, TransformerLM) and model.head.bias is None and worth_chunking(rows, vocab_size(model)):
        return Loss(*_chunked(model, model.hidden(inputs), targets, z_loss))
    logits = model(inputs).float()
    counted = (targets != IGNORE).to(logits.dtype).flatten(-2)
    count = counted.sum(-1)
    # Summed within a member, in the same order alone and in a gang.
    each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    nats = each.view(counted.shape).sum(-1) / count
    if z_loss is None:
        return Loss(nats, nats)
    log_z2 = (logits.logsumexp(-1).square().flatten(-2) * counted).sum(-1) / count
    return Loss(nats + z_loss * log_z2, nats)


def vocab_size(model: TransformerLM) -> int:
    """How many logits a token has."""
    return model.embedding.weight.shape[-2]


def _chunked(model: TransformerLM, hidden: Tensor, targets: Tensor, z_loss: Tensor | None) -> tuple[Tensor, Tensor]:
    head = model.embedding if model.head.proj is None else model.head.proj
    device = hidden.device.type
    return linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        z_loss=z_loss,
        soft_cap=model.final_soft_cap,
        compute_dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.compute_dtype,
        ignore_index=IGNORE,
    )
