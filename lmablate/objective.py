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
    """`objective` is what the optimizer minimises, `nats` the cross entropy a token, both scalars."""

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
        if isinstance(model, TransformerLM) and worth_chunking(targets.numel(), vocab_size(model)):
            z_loss = None if self.z_loss is None else torch.full((), self.z_loss, device=inputs.device)
            return Loss(*_chunked(model, model.hidden(inputs), targets, z_loss))
        return self.of_logits(model(inputs), targets)

    def of_logits(self, logits: Tensor, targets: Tensor) -> Loss:
        """The loss of logits ``[B, T, vocab_size]``."""
        logits = logits.float()
        nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORE)
        if self.z_loss is None:
            return Loss(nats, nats)
        counted = (targets != IGNORE).to(logits.dtype)
        log_z2 = (logits.logsumexp(-1).square() * counted).sum() / counted.sum()
        return Loss(nats + self.z_loss * log_z2, nats)


def member_losses(objectives: Sequence[Causal], model: TransformerLM, inputs: Tensor, targets: Tensor) -> list[Loss]:
    """The losses of the members of a gang, each as its own objective alone would give it; ``[K, B, T]`` tokens."""
    if not worth_chunking(targets[0].numel(), vocab_size(model)):
        logits = model(inputs)
        return [own.of_logits(*pair) for own, *pair in zip(objectives, logits, targets, strict=True)]
    weights = [own.z_loss for own in objectives]
    z_loss = None if None in weights else torch.tensor(weights, device=inputs.device)
    return [Loss(*pair) for pair in zip(*_chunked(model, model.hidden(inputs), targets, z_loss), strict=True)]


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
