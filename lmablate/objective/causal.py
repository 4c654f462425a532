"""``objective=causal``: every token is predicted from what came before it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lmablate.objective.base import Batch, Objective
from lmablate.objective.likelihood import IGNORE

AFTER = (25, 50, 75)  # per cent of a window, after which the targets of all objectives are compared


class Causal(Objective):
    """Every token of a text is a target, and is predicted from all before it."""

    looks_ahead: ClassVar[bool] = False

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        return Batch(inputs, targets)

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        return Batch(inputs, targets)

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """The targets that other objectives have too, read from left to right."""
        length = inputs.shape[-1]
        found = {"val_loss_causal": Batch(inputs, targets)}
        for share in AFTER:
            found[f"val_loss_after_{share}"] = Batch(inputs, after(targets, prefix_length(share / 100, length)))
        return found


def prefix_length(share: float, length: int) -> int:
    """`share` of a text of `length` tokens, in whole tokens, one at least."""
    return max(1, round(share * length))


def after(targets: Tensor, prefix: Tensor | int) -> Tensor:
    """`targets` ``[..., B, T]`` without those inside the prefix, of one length or ``[..., B]``: of the inputs, token
    ``prefix - 1`` is the first whose target is no token of the prefix."""
    first = prefix - 1
    if isinstance(first, Tensor):
        first = first[..., None]
    return targets.masked_fill(torch.arange(targets.shape[-1], device=targets.device) < first, IGNORE)
