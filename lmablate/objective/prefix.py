"""``objective=prefix``: the first part of a text is read in both directions, the rest predicted left to right."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.objective.base import Batch, Objective
from lmablate.objective.causal import AFTER, after, prefix_length
from lmablate.objective.masking import pairs_ahead


class Prefix(Objective):
    """A prefix language model (Raffel et al. 2019, arXiv 1910.10683, sections 3.2.1 and 3.3.1; the S-denoiser of UL2, arXiv 2205.05131,
    section 3.1.2): the tokens of a prefix read each other in both directions, the others read earlier tokens, and only targets after
    the prefix count.

    `draw` sets the length of the prefix of a training text of T tokens. ``uniform`` draws 1 to T for each text, as T5's random split
    does, from data seed, step and position in the batch; ``fixed`` is `share` of T for all. Validation always uses `share` of T. A
    prefix of one token is ``objective=causal``.
    """

    looks_ahead: ClassVar[bool] = True

    def __init__(self, *, z_loss: float | None, prefix_share: float, prefix_draw: Literal["uniform", "fixed"]) -> None:
        super().__init__(z_loss=z_loss)
        self.share, self.draw = prefix_share, prefix_draw

    def check(self, context_length: int) -> None:
        if prefix_length(self.share, context_length) < 2:
            raise ConfigError(
                f"objective.prefix_share={self.share:g} of model.context_length={context_length} is less than a prefix of 2 tokens, "
                f"and one of 1 token is objective=causal: give at least {2 / context_length:.3g}"
            )

    def source_length(self, length: int) -> int | None:
        """Return the prefix without its last token, with which the decoder begins."""
        return prefix_length(self.share, length) - 1 if self.draw == "fixed" else None

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        if self.draw == "fixed":
            return self.validation(inputs, targets)
        prefix = torch.from_numpy(draws(data_seed, step, *inputs.shape))
        return read(inputs, targets, prefix.to(inputs.device))

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        return _same_length(inputs, targets, self.share)

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """Return batches read left to right, without a prefix, and with prefixes whose targets every objective shares."""
        found = {"val_loss_causal": Batch(inputs, targets)}
        return found | {f"val_loss_after_{share}": _same_length(inputs, targets, share / 100) for share in AFTER}

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        if self.draw == "fixed":
            return pairs_ahead(prefix_length(self.share, length), window, stride) / length
        return _mean_pairs_ahead(length, window, stride) / length

    def targets_per_token(self, length: int) -> float:
        if self.draw == "fixed":
            return (length - prefix_length(self.share, length) + 1) / length
        return (length + 1) / (2 * length)


def read(inputs: Tensor, targets: Tensor, prefix: Tensor) -> Batch:
    """Return the batch of texts with prefixes of these lengths, ``[B]``."""
    return Batch(inputs, after(targets, prefix), prefix)


def _same_length(inputs: Tensor, targets: Tensor, share: float) -> Batch:
    n, length = inputs.shape
    return read(inputs, targets, torch.full((n,), prefix_length(share, length), device=inputs.device))


def draws(data_seed: int, step: int, n: int, length: int) -> np.ndarray:
    """Return lengths 1 to `length` for `n` texts, int64, from random_raw, which numpy promises never to change. Text i of a step draws
    the same in batches of any size."""
    bits = np.random.Philox(np.random.SeedSequence(data_seed, spawn_key=(step, 1)))
    return 1 + (bits.random_raw(n) % length).astype(np.int64)


@cache
def _mean_pairs_ahead(length: int, window: int | None, stride: int | None) -> float:
    return sum(pairs_ahead(prefix, window, stride) for prefix in range(1, length + 1)) / length
