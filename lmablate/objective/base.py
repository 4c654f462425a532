"""The base class of objectives: which tokens are read, which targets count, and their loss."""

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
    """Texts of a step, or of an evaluation: int64 `inputs` and `targets` ``[B, T]``; a target that does not count is IGNORE.

    The first `prefix` tokens of each text, ``[B]``, read each other in both directions; None: no token reads ahead. `noise`, float64
    ``[B, T]`` in [0, 1), is for an objective that samples from a model. In a gang every tensor has the member axis first.
    """

    inputs: Tensor
    targets: Tensor
    prefix: Tensor | None = None
    noise: Tensor | None = None

    def split(self, size: int, dim: int = 0) -> list[Batch]:
        """Split into batches of at most `size` texts along `dim`, the axis of texts."""
        chunks = [None if x is None else x.split(size, dim) for x in self]
        return [Batch._make(None if x is None else x[i] for x in chunks) for i in range(len(chunks[0] or ()))]

    def rows(self, rows: slice) -> Batch:
        """Return the texts at `rows` of a batch without members."""
        return Batch._make(None if x is None else x[rows] for x in self)

    def reads_like(self, other: Batch) -> bool:
        """Return True if a model computes the same for both: equal inputs, read alike."""
        if self.noise is not other.noise:
            return False
        if self.prefix is None or other.prefix is None:
            return self.inputs is other.inputs and self.prefix is other.prefix
        return self.inputs is other.inputs and torch.equal(self.prefix, other.prefix)

    def to(self, device: str) -> Batch:
        """Return this batch on another device."""
        return Batch._make(None if x is None else x.to(device) for x in self)


class ValidationText(NamedTuple):
    """The validation text as windows, int64 ``[N, T]`` each, and how to process it. `log_p`, ``[V]``, is the unigram model of the
    training text (add-one-smoothed counts)."""

    inputs: Tensor
    targets: Tensor
    log_p: np.ndarray
    batch_size: int
    device: str


def stacked(batches: Sequence[Batch]) -> Batch:
    """Stack the batches of members into one."""
    return Batch._make(None if x[0] is None else torch.stack(x) for x in zip(*batches, strict=True))


class Objective(nn.Module):
    """Base class: the mean cross entropy of the targets that count, in nats, plus ``z_loss * mean(log^2 Z)`` if that is on (PaLM, arXiv
    2204.02311, section 5).

    ``looks_ahead``: a token may read later ones, as the batch's prefix says. ``reads_all``: the prefix is always the whole text, and
    attention needs no mask. ``detects``: the model has one logit per token, for whether it was replaced. ``has_measures``: `measures`
    returns some. ``solo``: runs train alone, not in gangs. `vocab_size` is that of the model.
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
        """Raise ConfigError for settings without meaning at this length."""

    def reserved(self, length: int) -> int:
        """Return how many ids the model has beyond those of the tokenizer, for texts of `length` tokens: a mask, sentinels."""
        return 0

    def source_length(self, length: int) -> int | None:
        """Return how many tokens of a text of `length` an encoder reads, the same for every text; None: texts are not split."""
        return None

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        """Return the batch of training step `step` from its texts and their next tokens, int64 ``[B, T]``; a pure function."""
        raise NotImplementedError

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Return the batch of ``val_loss``, from all windows of the validation text, int64 ``[N, T]``."""
        raise NotImplementedError

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """Return further batches to measure a finished run on, by name of the result, for comparison with other objectives."""
        return {}

    def measures(self, model: LanguageModel, text: ValidationText) -> dict[str, float]:
        """Return further results of a finished run that are no cross entropy of targets, by name, with the unigram model's."""
        return {}

    def summed(self, model: LanguageModel, parts: Sequence[Batch]) -> list[float]:
        """Return the summed nats of each of `parts`, which are read alike (`reads_like`); without gradients."""
        own = parts[0]
        hidden = model.hidden(own.inputs) if own.prefix is None else model.hidden(own.inputs, own.prefix)
        targets = [part.targets[..., -hidden.shape[-2] :].flatten() for part in parts]
        return summed_nats(model, hidden.flatten(0, -2), targets)

    def counted(self, batch: Batch) -> int:
        """Return the number of targets that `summed` sums over."""
        return int((batch.targets != IGNORE).sum())

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        """Return the mean number of later keys that a query reads in training, within a layer's span."""
        return 0.0

    def targets_per_token(self, length: int) -> float:
        """Return the mean fraction of a training text's tokens that are targets which count."""
        return 1.0

    def __call__(self, model: nn.Module, *batch: Tensor | None, z_loss: Tensor | None = None) -> Loss:
        """Return the loss of this objective plus the extra losses of the model's parts (objective/extra_losses.py).

        The fields of a batch of a gang have a member axis, and so have the losses: each member has its own `z_loss`, ``[K]``."""
        forget_extra_losses(model)
        return _with_extra(super().__call__(model, *batch, z_loss=z_loss), model)

    def forward(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        prefix: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        z_loss: Tensor | None = None,
    ) -> Loss:
        """Return the loss of the fields of a batch; `z_loss` replaces the objective's own weight."""
        if z_loss is None and self.z_loss is not None:
            z_loss = torch.full((), self.z_loss, device=inputs.device)
        return likelihood(model, inputs, targets, prefix, z_loss)


def _with_extra(loss: Loss, model: nn.Module) -> Loss:
    extra = extra_loss(model)
    return loss if extra is None else loss._replace(objective=loss.objective + extra)


def z_losses(objectives: Sequence[Objective], device: str) -> Tensor | None:
    """Return the weights of the members' z-losses, ``[K]``, or None if they are off."""
    weights = [own.z_loss for own in objectives]
    return None if None in weights else torch.tensor(weights, device=device)
