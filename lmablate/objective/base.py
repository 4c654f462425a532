"""What every objective is: which tokens are read, which targets count, and the loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lmablate.objective.likelihood import Loss, likelihood


class Batch(NamedTuple):
    """Texts of a step, or of an evaluation: int64 `inputs` and `targets` ``[B, T]``, where a target that does not count is
    IGNORE. The first `prefix` tokens of each text, ``[B]``, read one another in both directions; None: no token reads
    ahead. With members of a gang every tensor has their axis first."""

    inputs: Tensor
    targets: Tensor
    prefix: Tensor | None = None

    def split(self, size: int, dim: int = 0) -> list[Batch]:
        """Pieces of at most `size` texts, along the axis of texts."""
        pieces = [None if x is None else x.split(size, dim) for x in self]
        return [Batch._make(None if x is None else x[i] for x in pieces) for i in range(len(pieces[0] or ()))]

    def reads_like(self, other: Batch) -> bool:
        """Whether a model computes the same for both: the same inputs, read alike."""
        if self.prefix is None or other.prefix is None:
            return self.inputs is other.inputs and self.prefix is other.prefix
        return self.inputs is other.inputs and torch.equal(self.prefix, other.prefix)

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch._make(None if x is None else x.to(device) for x in self)


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of members as one."""
    return Batch._make(None if x[0] is None else torch.stack(x) for x in zip(*batches, strict=True))


class Objective(nn.Module):
    """Base: the mean cross entropy of the targets that count, in nats, plus ``z_loss * mean(log^2 Z)`` where that is on
    (PaLM, arXiv 2204.02311, section 5).

    ``looks_ahead`` declares whether a token may read one after it. A prefix that a batch brings says which.
    """

    looks_ahead: ClassVar[bool]

    def __init__(self, *, z_loss: float | None) -> None:
        super().__init__()
        self.z_loss = z_loss

    def check(self, context_length: int) -> None:
        """Raise ConfigError for settings that mean nothing at this length."""

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        """What training step `step` makes of its texts and the tokens that follow in them, int64 ``[B, T]``: a function of
        the arguments alone."""
        raise NotImplementedError

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        """What ``val_loss`` is measured on, of all windows of the validation text, int64 ``[N, T]``."""
        raise NotImplementedError

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """What a finished run is measured on besides, so that it can stand beside runs of other objectives, by the name of
        the result."""
        return {}

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        """The mean number of keys after its own that a query reads in training, within a layer's reach."""
        return 0.0

    def targets_per_token(self, length: int) -> float:
        """The mean share of the tokens of a training text that are targets which count."""
        return 1.0

    def forward(self, model: nn.Module, inputs: Tensor, targets: Tensor, prefix: Tensor | None = None) -> Loss:
        """The fields of a batch without members."""
        z_loss = None if self.z_loss is None else torch.full((), self.z_loss, device=inputs.device)
        return likelihood(model, inputs, targets, prefix, z_loss)


def member_losses(
    objectives: Sequence[Objective], model: nn.Module, inputs: Tensor, targets: Tensor, prefix: Tensor | None = None
) -> Loss:
    """The losses of the members of a gang, each as its own objective alone would give it; ``[K, B, T]`` tokens."""
    weights = [own.z_loss for own in objectives]
    z_loss = None if None in weights else torch.tensor(weights, device=inputs.device)
    return likelihood(model, inputs, targets, prefix, z_loss)
