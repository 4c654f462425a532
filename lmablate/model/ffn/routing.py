"""Routers: the experts of each token, and their weights.

A router maps the stream ``[K, S, T, D]`` (K members, 1 without; S texts of T tokens) to a `Choice`. An expert that is not chosen has no
weight and is not computed.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.model.ffn.hashing import hash_each, normal, prefix_hash, uniform
from lmablate.model.primitives import Linear, Router


class Choice(NamedTuple):
    """The k experts of each token: int64 `experts` and fp32 `weights` ``[K, S, T, k]``, and bool `kept` if some are dropped. Balancing
    acts on `probabilities` ``[K, S, T, E]``, which come from `logits`; both are None without a learned router."""

    experts: Tensor
    weights: Tensor
    kept: Tensor | None = None
    probabilities: Tensor | None = None
    logits: Tensor | None = None


class Groups(NamedTuple):
    """Experts in `n` groups of equal size: a token may use those of the `k` best groups, ranked by the sum of their `best` highest
    scores."""

    n: int
    k: int
    best: int


class TokenRouter(nn.Module):
    """A router whose tokens choose k experts each: with ``h = W x`` and ``s = softmax(h)`` or ``sigmoid(h)``, the k highest ``s + b``.

    Their weights are ``scale * s``, divided by their sum with `normalise`. Softmax with `normalise` is the softmax over the chosen
    alone (Jiang et al. 2024, arXiv 2401.04088, section 2.1); without, the softmax before the choice (Fedus et al. 2021, arXiv
    2101.03961, eq. 1-2; DeepSeekMoE, arXiv 2401.06066, eq. 3-5). ``b`` exists with `biased`: it affects the choice but no weight, and
    gets no gradient (DeepSeek-V3, arXiv 2412.19437, eq. 16; see balance.py). `groups` limits the choice to the experts of some groups,
    which would share a node (section 2.1.2 there; DeepSeek-V2, arXiv 2405.04434, section 2.2.2).

    `noisy`: in training ``h = W x + z softplus(W_noise x)`` with standard normal z (Shazeer et al. 2017, arXiv 1701.06538, eq. 3-5). z
    is a hash of the tokens read so far, the layer and the expert.

    Of equal scores torch.topk takes an arbitrary one; floating-point scores are rarely equal.
    """

    may_be_idle: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        k: int,
        *,
        sigmoid: bool,
        normalise: bool,
        scale: float,
        biased: bool,
        noisy: bool,
        groups: Groups | None,
        layer: int,
    ) -> None:
        super().__init__()
        self.proj = Router(d_model, n_experts, bias=False)
        self.noise_proj = Router(d_model, n_experts, bias=False) if noisy else None
        self.bias = nn.Parameter(torch.zeros(n_experts), requires_grad=False) if biased else None
        self.k, self.sigmoid, self.normalise, self.scale, self.groups, self.layer = (
            *(k, sigmoid, normalise, scale, groups, layer),
        )

    def forward(self, x: Tensor, tokens: Tensor | None) -> Choice:
        logits = scores_of(self.proj, x)
        if self.noise_proj is not None and self.training:
            drawn = normal(hash_each(prefix_hash(_known(tokens)), logits.shape[-1], self.layer))
            logits = logits + drawn * F.softplus(scores_of(self.noise_proj, x))
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        best = scores.detach()
        if self.bias is not None:
            best = best + self.bias.view(-1, 1, 1, best.shape[-1])
        if self.groups is not None:
            best = _within_groups(best, self.groups)
        experts = best.topk(self.k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        chances = scores / (scores.sum(-1, keepdim=True) + 1e-20) if self.sigmoid else scores
        return Choice(experts, weights * self.scale, probabilities=chances, logits=logits)


def scores_of(proj: Linear, x: Tensor) -> Tensor:
    """Return scores ``[K, S, T, D] -> [K, S, T, E]``, for weights with or without members."""
    return proj(x) if proj.weight.ndim == 3 else proj(x[0])[None]


def _known(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise ValueError("this feed-forward option needs the tokens of the text: AttentionContext.tokens is not given")
    return tokens


def _within_groups(scores: Tensor, groups: Groups) -> Tensor:
    """Scores ``[..., E]`` with those outside the best groups at minus infinity."""
    each = scores.unflatten(-1, (groups.n, -1))
    value = each.topk(groups.best, dim=-1).values.sum(-1)
    chosen = torch.zeros_like(value, dtype=torch.bool).scatter_(-1, value.topk(groups.k, dim=-1).indices, True)
    return each.masked_fill(~chosen[..., None], -torch.inf).flatten(-2)


class HashRouter(nn.Module):
    """A router whose k experts of a token are a fixed random function of its id and the layer, with equal weights; nothing is learned
    (Roller et al. 2021, arXiv 2106.04426, section 3.1, random hash)."""

    def __init__(self, n_experts: int, k: int, *, layer: int) -> None:
        super().__init__()
        self.n_experts, self.k, self.layer = n_experts, k, layer

    def forward(self, x: Tensor, tokens: Tensor | None) -> Choice:
        drawn = uniform(hash_each(_known(tokens), self.n_experts, self.layer))
        experts = drawn.topk(self.k, dim=-1).indices
        return Choice(experts, x.new_full(experts.shape, 1 / self.k, dtype=torch.float32))


def within_capacity(choice: Choice, n_experts: int, capacity: int) -> Choice:
    """Return `choice` with at most `capacity` tokens of a text per expert; later ones are dropped, with their weight (Fedus et al.
    2021, arXiv 2101.03961, section 2.2). First come, first served, so that no token depends on later ones."""
    chosen = F.one_hot(choice.experts.flatten(-2), n_experts)
    earlier = (chosen.cumsum(-2) - chosen).gather(-1, choice.experts.flatten(-2)[..., None])
    kept = (earlier[..., 0] < capacity).view(choice.experts.shape)
    return choice._replace(weights=choice.weights.masked_fill(~kept, 0.0), kept=kept)


class ExpertRouter(nn.Module):
    """A router whose experts choose `capacity` tokens of a text each, those with their highest ``s = softmax(W x)`` (over experts),
    which are also the weights (Zhou et al. 2022, arXiv 2202.09368, eq. 1-2).

    All experts have the same load, and a token has none, one or several. Whether a token is chosen depends on all tokens of the text,
    also later ones.
    """

    def __init__(self, d_model: int, n_experts: int) -> None:
        super().__init__()
        self.proj = Router(d_model, n_experts, bias=False)

    def forward(self, x: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return int64 tokens and fp32 weights ``[K, S, E, C]``, and the logits ``[K, S, T, E]``."""
        logits = scores_of(self.proj, x)
        weights, chosen = logits.softmax(-1).transpose(-1, -2).topk(capacity, dim=-1)
        return chosen, weights, logits
