"""Losses of the model's parts, added to that of the objective.

A module with its own loss sets ``extra_loss`` in its forward pass in training, a scalar or ``[K]`` with members; the objective adds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def forget_extra_losses(model: nn.Module) -> None:
    """Delete the losses of an earlier forward pass."""
    for module in _parts(model):
        if getattr(module, "extra_loss", None) is not None:
            module.extra_loss = None


def extra_loss(model: nn.Module) -> Tensor | None:
    """Return the sum of the last forward pass's extra losses and clear them; None if there are none."""
    total = None
    for module in _parts(model):
        if (own := getattr(module, "extra_loss", None)) is not None:
            total = own if total is None else total + own
            module.extra_loss = None
    return total


def _parts(model: nn.Module) -> Iterator[Any]:
    yield from model.modules()
