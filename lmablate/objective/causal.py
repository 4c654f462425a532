"""``objective=causal``: every token is predicted from the tokens before it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lmablate.objective.base import Batch, Objective
from lmablate.objective.likelihood import IGNORE

AFTER = (25, 50, 75)  # per cent of a window; all objectives are compared on the targets after it


class Causal(Objective):
    """Causal language modelling: every token of a text is a target, predicted from all before it."""

    looks_ahead: ClassVar[bool] = False

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        return Batch(inputs, targets)

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        return Batch(inputs, targets)

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """Return the targets shared with other objectives, read left to right."""
        length = inputs.shape[-1]
        found = {"val_loss_causal": Batch(inputs, targets)}
        for share in AFTER:
            found[f"val_loss_after_{share}"] = Batch(inputs, after(targets, prefix_length(share / 100, length)))
        return found


def prefix_length(share: float, length: int) -> int:
    """Return `share` of a text of `length` tokens, rounded to tokens, at least one."""
    return max(1, round(share * length))


def after(targets: Tensor, prefix: Tensor | int) -> Tensor:
    """Return `targets` ``[..., B, T]`` without those inside the prefix, of one length or ``[..., B]``. Input token ``prefix - 1`` is
    the first whose target is not in the prefix."""
    first = prefix - 1
    if isinstance(first, Tensor):
        first = first[..., None]
    return targets.masked_fill(torch.arange(targets.shape[-1], device=targets.device) < first, IGNORE)
