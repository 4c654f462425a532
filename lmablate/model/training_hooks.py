"""What a part may add to training beside its output, without the trainer knowing the part.

A module that has a loss of its own leaves it for the objective (objective/extra_losses.py). A module that counts over a step,
however it is cut into pieces, names the buffers it counts in ``per_member``: they are zeroed before a step, and with members
of a gang each has a slice ``[k]`` of its own. One that moves a weight by such counts and not by a gradient has ``after_step``,
which is called once the optimizer has taken its step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def _parts(model: nn.Module) -> Iterator[Any]:
    yield from model.modules()


def _counts(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for module in _parts(model):
        for name in getattr(module, "per_member", ()):
            yield module, name


@torch.no_grad()
def before_step(model: nn.Module) -> None:
    """Zero what is counted over a step."""
    for module, name in _counts(model):
        getattr(module, name).zero_()


def after_step(model: nn.Module) -> None:
    """Let modules move what no gradient moves."""
    for module in _parts(model):
        if hasattr(module, "after_step"):
            module.after_step()


def stack_counts(stack: nn.Module, members: list[nn.Module]) -> None:
    """Give the model of a gang the counts of all members, of which each member's own are views."""
    for i, (module, name) in enumerate(_counts(stack)):
        own = [list(_counts(member))[i][0] for member in members]
        whole = torch.stack([getattr(one, name) for one in own])
        setattr(module, name, whole)
        for k, one in enumerate(own):
            setattr(one, name, whole[k])


def join_counts(stack: nn.Module, slot: int, member: nn.Module) -> None:
    """Put a fresh member's counts into a slot."""
    for (module, name), (own, _) in zip(_counts(stack), _counts(member), strict=True):
        getattr(module, name)[slot].copy_(getattr(own, name))
        setattr(own, name, getattr(module, name)[slot])


def leave_counts(member: nn.Module) -> None:
    """Let a member take its counts with it."""
    for module, name in _counts(member):
        setattr(module, name, getattr(module, name).clone())
