"""Losses that balance the load of a layer's experts and keep its router's scores small.

The choices are ``[K, S, T, k]`` of E experts. With ``f_i = E / (k T) sum_t 1[t meets i]`` and ``P_i = mean_t p_i(t)``,

    balance   weight * sum_i f_i P_i              Fedus et al. 2021, arXiv 2101.03961, eq. 4-6, for any k; arXiv 2401.06066, eq. 12-14
    device    weight * sum_d mean_{i in d} f_i sum_{i in d} P_i      over groups of experts: DeepSeek-V2, arXiv 2405.04434, eq. 26-28
    comm      weight * sum_d c_d sum_{i in d} P_i      eq. 29-31 there, of D groups of which a token may use M, and
              ``c_d = D / (M T) sum_t 1[t meets an expert of d]``: tokens sent to a device, however many experts they use there
    z         weight * mean_t logsumexp(h)^2      Zoph et al. 2022, arXiv 2202.08906, eq. 5

which are `weight` for an even load (comm if tokens use all M groups they may). f and c are counts and have no gradient. f, c and P are
means over each text, whose losses are averaged (DeepSeek-V3, arXiv 2412.19437, eq. 17-20), or over the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmablate.model.ffn.routing import Choice


class Balance(NamedTuple):
    """Weights of the losses, 0.0 for none; `whole_batch`: f, c and P over all texts; `n_groups` of the group losses, of which a token
    may use `group_k`."""

    balance: float
    device: float
    communication: float
    router_z: float
    whole_batch: bool
    n_groups: int
    group_k: int

    @property
    def on(self) -> bool:
        return bool(self.balance or self.device or self.communication or self.router_z)


def loads(experts: Tensor, n_experts: int) -> Tensor:
    """Return how often each text chooses each expert: int64 ``[K, S, T, k] -> [K, S, E]``."""
    flat = experts.flatten(-2)
    return flat.new_zeros(*flat.shape[:-1], n_experts).scatter_add_(-1, flat, torch.ones_like(flat))


def visits(experts: Tensor, n_experts: int, n_groups: int) -> Tensor:
    """Return how many tokens of each text use any expert of a group: int64 ``[K, S, T, k] -> [K, S, D]``."""
    group = experts // (n_experts // n_groups)
    met = group.new_zeros(*group.shape[:-1], n_groups).scatter_(-1, group, torch.ones_like(group))
    return met.sum(-2)


def losses(choice: Choice, weights: Balance) -> Tensor:
    """Return the sum of the losses of each member, ``[K]``."""
    assert choice.probabilities is not None
    assert choice.logits is not None
    n_experts = choice.probabilities.shape[-1]
    total = choice.probabilities.new_zeros(len(choice.experts))
    if weights.balance or weights.device or weights.communication:
        k, length = choice.experts.shape[-1], choice.experts.shape[-2]
        f = loads(choice.experts, n_experts).float() * (n_experts / (k * length))
        p = choice.probabilities.mean(-2)
        if weights.whole_batch:
            f, p = f.mean(-2, keepdim=True), p.mean(-2, keepdim=True)
        if weights.balance:
            total = total + weights.balance * (f * p).sum(-1).mean(-1)
        f, p = (x.unflatten(-1, (weights.n_groups, -1)) for x in (f, p))
        if weights.device:
            total = total + weights.device * (f.mean(-1) * p.sum(-1)).sum(-1).mean(-1)
        if weights.communication:
            c = visits(choice.experts, n_experts, weights.n_groups).float()
            c = c * (weights.n_groups / (weights.group_k * length))
            if weights.whole_batch:
                c = c.mean(-2, keepdim=True)
            total = total + weights.communication * (c * p.sum(-1)).sum(-1).mean(-1)
    if weights.router_z:
        total = total + weights.router_z * choice.logits.logsumexp(-1).square().flatten(1).mean(-1)
    return total


@torch.no_grad()
def move_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Update after a step: ``b_i += rate * sign(mean load - load_i)``, so that a busy expert is chosen less often (Wang et al. 2024,
    arXiv 2408.15664, algorithm 1). `load` counts the tokens of the whole step; both ``[E]``."""
    bias += rate * (load.sum() - load * len(load)).sign()
