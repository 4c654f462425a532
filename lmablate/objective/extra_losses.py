"""Losses of the model's parts, added to that of the objective.

A module with its own loss sets ``extra_loss`` in its forward pass in training, a scalar or ``[K]`` with members; the objective adds it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lmablate.core.source_code import is_shipped


def forget_extra_losses(model: nn.Module) -> None:
    """Delete the losses of an earlier forward pass."""
    for module in parts_with(model, "extra_loss"):
        if getattr(module, "extra_loss", None) is not None:
            module.extra_loss = None


def extra_loss(model: nn.Module) -> Tensor | None:
    """Return the sum of the last forward pass's extra losses and clear them; None if there are none."""
    total = None
    for module in parts_with(model, "extra_loss"):
        if (own := getattr(module, "extra_loss", None)) is not None:
            total = own if total is None else total + own
            module.extra_loss = None
    return total


def parts_with(model: nn.Module, name: str) -> list[Any]:
    """Return the modules with an attribute `name`, and the user's, which may get it later. Walked once for each model: every step asks
    several times."""
    known = model.__dict__.setdefault("_parts_with", {})
    if name not in known:
        known[name] = [module for module in model.modules() if hasattr(module, name) or _is_own(module)]
    return known[name]


def _is_own(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.") and not is_shipped(type(module))
