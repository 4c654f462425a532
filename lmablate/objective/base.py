"""What every objective is: which tokens are read, which targets count, and the loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lmablate.objective.extra_losses import extra_loss, forget_extra_losses
from lmablate.objective.likelihood import IGNORE, Loss, likelihood, summed_nats

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


class Batch(NamedTuple):
    """Texts of a step, or of an evaluation: int64 `inputs` and `targets` ``[B, T]``, where a target that does not count is
    IGNORE. The first `prefix` tokens of each text, ``[B]``, read one another in both directions; None: no token reads
    ahead. `noise`, float64 ``[B, T]`` in [0, 1), is for an objective that draws tokens from a model. With members of a gang
    every tensor has their axis first."""

    inputs: Tensor
    targets: Tensor
    prefix: Tensor | None = None
    noise: Tensor | None = None

    def split(self, size: int, dim: int = 0) -> list[Batch]:
        """Pieces of at most `size` texts, along the axis of texts."""
        pieces = [None if x is None else x.split(size, dim) for x in self]
        return [Batch._make(None if x is None else x[i] for x in pieces) for i in range(len(pieces[0] or ()))]

    def reads_like(self, other: Batch) -> bool:
        """Whether a model computes the same for both: the same inputs, read alike."""
        if self.noise is not other.noise:
            return False
        if self.prefix is None or other.prefix is None:
            return self.inputs is other.inputs and self.prefix is other.prefix
        return self.inputs is other.inputs and torch.equal(self.prefix, other.prefix)

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch._make(None if x is None else x.to(device) for x in self)


class Held(NamedTuple):
    """The validation text as windows, int64 ``[N, T]`` each; `log_p`, ``[V]``, is what a unigram model of the training text gives
    each token (add-one-smoothed counts); and how to go through it."""

    inputs: Tensor
    targets: Tensor
    log_p: np.ndarray
    batch_size: int
    device: str


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of members as one."""
    return Batch._make(None if x[0] is None else torch.stack(x) for x in zip(*batches, strict=True))


class Objective(nn.Module):
    """Base: the mean cross entropy of the targets that count, in nats, plus ``z_loss * mean(log^2 Z)`` where that is on
    (PaLM, arXiv 2204.02311, section 5).

    ``looks_ahead`` declares whether a token may read one after it. A prefix that a batch brings says which; with ``reads_all``
    it is always the whole text, and attention needs no mask. ``detects`` declares that the model has one logit a token, which
    says whether it was replaced, ``has_measures`` that there are `measures`, and ``solo`` that runs train alone, not in gangs.
    `vocab_size` is that of the model.
    """

    looks_ahead: ClassVar[bool]
    reads_all: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    has_measures: ClassVar[bool] = False
    solo: ClassVar[bool] = False
    vocab_size: int

    def __init__(self, *, z_loss: float | None) -> None:
        super().__init__()
        self.z_loss = z_loss

    def check(self, context_length: int) -> None:
        """Raise ConfigError for settings that mean nothing at this length."""

    def reserved(self, length: int) -> int:
        """How many ids the model has above those of the tokenizer, for texts of `length` tokens: a mask, sentinels."""
        return 0

    def source_length(self, length: int) -> int | None:
        """How many tokens of a text of `length` an encoder reads, where a model has one: the same of every text. None: texts
        are not split so."""
        return None

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

    def measures(self, model: LanguageModel, text: Held) -> dict[str, float]:
        """What a finished run is measured on besides that is no cross entropy of targets, by the name of the result; with
        what a unigram model reaches."""
        return {}

    def summed(self, model: LanguageModel, parts: Sequence[Batch]) -> list[float]:
        """The summed nats of each of `parts`, which are read alike (`reads_like`); without gradients."""
        own = parts[0]
        hidden = model.hidden(own.inputs) if own.prefix is None else model.hidden(own.inputs, own.prefix)
        targets = [part.targets[..., -hidden.shape[-2] :].flatten() for part in parts]
        return summed_nats(model, hidden.flatten(0, -2), targets)

    def counted(self, batch: Batch) -> int:
        """How many numbers `summed` is of."""
        return int((batch.targets != IGNORE).sum())

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        """The mean number of keys after its own that a query reads in training, within a layer's reach."""
        return 0.0

    def targets_per_token(self, length: int) -> float:
        """The mean share of the tokens of a training text that are targets which count."""
        return 1.0

    def __call__(self, model: nn.Module, *batch: Tensor | None) -> Loss:
        """The loss of this objective, and to it what parts of the model have of their own (model/extra.py)."""
        forget_extra_losses(model)
        return _with_extra(super().__call__(model, *batch), model)

    def forward(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        prefix: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Loss:
        """The fields of a batch without members."""
        z_loss = None if self.z_loss is None else torch.full((), self.z_loss, device=inputs.device)
        return likelihood(model, inputs, targets, prefix, z_loss)


def _with_extra(loss: Loss, model: nn.Module) -> Loss:
    extra = extra_loss(model)
    return loss if extra is None else loss._replace(objective=loss.objective + extra)


def member_losses(
    objectives: Sequence[Objective],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    prefix: Tensor | None = None,
    noise: Tensor | None = None,
) -> Loss:
    """The losses of the members of a gang, each as its own objective alone would give it; ``[K, B, T]`` tokens."""
    weights = [own.z_loss for own in objectives]
    z_loss = None if None in weights else torch.tensor(weights, device=inputs.device)
    forget_extra_losses(model)
    return _with_extra(likelihood(model, inputs, targets, prefix, z_loss), model)
