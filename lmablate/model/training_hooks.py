"""Hooks by which a part adds to training beyond its output, without the trainer knowing the part.

A module with a loss of its own leaves it for the objective (objective/extra_losses.py). A module that counts over a step, in any number
of microbatches, names its buffers in ``per_member``: they are zeroed before a step, and in a gang each member has a slice ``[k]``. A
module that updates a weight by counts instead of a gradient has ``after_step``, called after the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lmablate.objective.extra_losses import parts_with


def _counts(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for module in parts_with(model, "per_member"):
        for name in getattr(module, "per_member", ()):
            yield module, name


@torch.no_grad()
def before_step(model: nn.Module) -> None:
    """Zero the buffers that count over a step."""
    for module, name in _counts(model):
        getattr(module, name).zero_()


def after_step(model: nn.Module) -> None:
    """Call ``after_step`` of every module that has it."""
    for module in parts_with(model, "after_step"):
        if hasattr(module, "after_step"):
            module.after_step()


def stack_counts(stack: nn.Module, members: list[nn.Module]) -> None:
    """Stack the counts of all members in the model of a gang; each member's own become views of them."""
    for i, (module, name) in enumerate(_counts(stack)):
        own = [list(_counts(member))[i][0] for member in members]
        whole = torch.stack([getattr(one, name) for one in own])
        setattr(module, name, whole)
        for k, one in enumerate(own):
            setattr(one, name, whole[k])


def join_counts(stack: nn.Module, slot: int, member: nn.Module) -> None:
    """Copy a new member's counts into a slot and make them views of it."""
    for (module, name), (own, _) in zip(_counts(stack), _counts(member), strict=True):
        getattr(module, name)[slot].copy_(getattr(own, name))
        setattr(own, name, getattr(module, name)[slot])


def leave_counts(member: nn.Module) -> None:
    """Give a member its own copy of its counts."""
    for module, name in _counts(member):
        setattr(module, name, getattr(module, name).clone())
