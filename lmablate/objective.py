"""What a model is trained to do: ``objective=causal`` predicts the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
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

    def forward(self, model: TransformerLM, inputs: Tensor, targets: Tensor) -> Loss:
        """`inputs` and `targets` are int64 ``[B, T]``."""
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
