"""Sizes of gradients and updates by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lmablate.diagnostics.module_names import Measurements


@torch.no_grad()
def gradient_norms(places: Mapping[str, Sequence[nn.Parameter]]) -> Measurements:
    """Return ``<place>/grad_norm``: the L2 norm of the gradient of a step's mean loss, over all parameters of a place, before clipping.
    Places without a gradient are omitted."""
    found = {}
    for place, parameters in places.items():
        if gradients := [p.grad for p in parameters if p.grad is not None]:
            found[f"{place}/grad_norm"] = get_total_norm(gradients)
    return found


@torch.no_grad()
def copies(places: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, list[Tensor]]:
    """Return copies of the weights of each place."""
    return {place: [p.detach().clone() for p in parameters] for place, parameters in places.items()}


@torch.no_grad()
def update_ratios(places: Mapping[str, Sequence[nn.Parameter]], before: Mapping[str, list[Tensor]]) -> Measurements:
    """Return ``<place>/update_ratio``: ``|w' - w| / |w|`` of one optimizer step, including weight decay; `before` has w. Not finite for
    a place whose weights were all zero."""
    found = {}
    for place, parameters in places.items():
        changes = [p.detach() - old for p, old in zip(parameters, before[place], strict=True)]
        found[f"{place}/update_ratio"] = get_total_norm(changes) / get_total_norm(before[place])
    return found
