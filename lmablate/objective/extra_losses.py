"""Losses of parts of the model, beside that of the objective.

A module that has a loss of its own sets ``extra_loss`` in its forward pass in training, a scalar or ``[K]`` with members, and
the objective adds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def forget_extra_losses(model: nn.Module) -> None:
    """Drop what an earlier forward pass left."""
    for module in _parts(model):
        if getattr(module, "extra_loss", None) is not None:
            module.extra_loss = None


def extra_loss(model: nn.Module) -> Tensor | None:
    """The sum of what the last forward pass left, taken from the modules; None where that is nothing."""
    total = None
    for module in _parts(model):
        if (own := getattr(module, "extra_loss", None)) is not None:
            total = own if total is None else total + own
            module.extra_loss = None
    return total


def _parts(model: nn.Module) -> Iterator[Any]:
    yield from model.modules()
