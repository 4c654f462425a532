"""Which experts a token meets, and with what weight.

A router is given the stream as ``[K, S, T, D]`` (K members, 1 without; S texts of T tokens) and gives a `Choice`. An expert that is not
chosen has no weight at all: it is not computed.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.model.ffn.hashing import normal, read_so_far, spread, uniform
from lmablate.model.primitives import Linear, Router


class Choice(NamedTuple):
    """Of k experts a token: int64 `experts` and fp32 `weights` ``[K, S, T, k]``, and bool `kept`, where there are dropped ones.
    `probabilities` ``[K, S, T, E]`` are those that balancing acts on and `logits` what they come from; None without a learned
    router."""

    experts: Tensor
    weights: Tensor
    kept: Tensor | None = None
    probabilities: Tensor | None = None
    logits: Tensor | None = None


class Groups(NamedTuple):
    """Experts in `n` groups of equal size: a token may meet those of the `k` best groups, each judged by the sum of its `best`
    highest scores."""

    n: int
    k: int
    best: int


class TokenRouter(nn.Module):
    """Every token chooses its k experts: with ``h = W x`` and ``s = softmax(h)`` or ``sigmoid(h)``, the k highest ``s + b``.

    Their weights are ``scale * s``, divided by their sum where `normalise` is set. Softmax with normalising is the softmax over
    the chosen alone (Jiang et al. 2024, arXiv 2401.04088, section 2.1); without, the softmax before the choice (Fedus et al. 2021, arXiv
    2101.03961, eq. 1-2; DeepSeekMoE, arXiv 2401.06066, eq. 3-5). ``b`` is there where `biased` is set: it moves the choice and no
    weight, and no gradient reaches it (DeepSeek-V3, arXiv 2412.19437, eq. 16; see balance.py). `groups` limits the choice to
    the experts of some groups, which would share a node (section 2.1.2 there; DeepSeek-V2, arXiv 2405.04434, section 2.2.2).

    `noisy`: in training ``h = W x + z softplus(W_noise x)`` with standard normal z (Shazeer et al. 2017, arXiv 1701.06538, eq. 3-5).
    z is a hash of the tokens read so far, the layer and the expert.

    Of equal scores torch.topk takes whichever it comes to; two floating-point scores are rarely equal.
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
            drawn = normal(spread(read_so_far(_known(tokens)), logits.shape[-1], self.layer))
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
    """``[K, S, T, D] -> [K, S, T, E]``, whether or not the weights have members."""
    return proj(x) if proj.weight.ndim == 3 else proj(x[0])[None]


def _known(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise ValueError("this feed-forward option needs the tokens of the text: Positions.tokens is not given")
    return tokens


def _within_groups(scores: Tensor, groups: Groups) -> Tensor:
    """Scores ``[..., E]`` with those outside of the best groups at minus infinity."""
    each = scores.unflatten(-1, (groups.n, -1))
    value = each.topk(groups.best, dim=-1).values.sum(-1)
    chosen = torch.zeros_like(value, dtype=torch.bool).scatter_(-1, value.topk(groups.k, dim=-1).indices, True)
    return each.masked_fill(~chosen[..., None], -torch.inf).flatten(-2)


class HashRouter(nn.Module):
    """A token's k experts are a fixed random function of which token it is and of the layer, with equal weights; nothing is
    learned (Roller et al. 2021, arXiv 2106.04426, section 3.1, random hash)."""

    def __init__(self, n_experts: int, k: int, *, layer: int) -> None:
        super().__init__()
        self.n_experts, self.k, self.layer = n_experts, k, layer

    def forward(self, x: Tensor, tokens: Tensor | None) -> Choice:
        drawn = uniform(spread(_known(tokens), self.n_experts, self.layer))
        experts = drawn.topk(self.k, dim=-1).indices
        return Choice(experts, x.new_full(experts.shape, 1 / self.k, dtype=torch.float32))


def within_capacity(choice: Choice, n_experts: int, capacity: int) -> Choice:
    """`choice` with no more than `capacity` tokens of a text an expert: later ones are dropped, with their weight (Fedus et al.
    2021, arXiv 2101.03961, section 2.2). First come, first served, so that no token hangs on those after it."""
    asked = F.one_hot(choice.experts.flatten(-2), n_experts)
    earlier = (asked.cumsum(-2) - asked).gather(-1, choice.experts.flatten(-2)[..., None])
    kept = (earlier[..., 0] < capacity).view(choice.experts.shape)
    return choice._replace(weights=choice.weights.masked_fill(~kept, 0.0), kept=kept)


class ExpertRouter(nn.Module):
    """Every expert chooses `capacity` tokens of a text, those with its highest ``s = softmax(W x)`` (over experts), and weighs them
    with it (Zhou et al. 2022, arXiv 2202.09368, eq. 1-2): all experts have the same load, and a token meets none, one or
    several. Whether a token is chosen hangs on all tokens of the text, those after it among them."""

    def __init__(self, d_model: int, n_experts: int) -> None:
        super().__init__()
        self.proj = Router(d_model, n_experts, bias=False)

    def forward(self, x: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Int64 tokens and fp32 weights ``[K, S, E, C]``, and the logits ``[K, S, T, E]``."""
        logits = scores_of(self.proj, x)
        weights, chosen = logits.softmax(-1).transpose(-1, -2).topk(capacity, dim=-1)
        return chosen, weights, logits
