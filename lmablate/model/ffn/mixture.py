"""The branch of a layer with experts: routing, the experts, shared experts, and its training losses."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from lmablate.model.ffn.balance import Balance, loads, losses, move_bias
from lmablate.model.ffn.base import FeedForward, FFNShape
from lmablate.model.ffn.dense import network
from lmablate.model.ffn.experts import experts
from lmablate.model.ffn.grouped import copies, sort_rows, weighted_sum
from lmablate.model.ffn.routing import Choice, ExpertRouter, HashRouter, TokenRouter, within_capacity
from lmablate.model.posemb import AttentionContext
from lmablate.model.primitives import Router, exact


class Mixture(FeedForward):
    """``y = sum_chosen w_i E_i(x) (+ gate(x) * shared(x))``: E networks of width `width`, of which a token uses the chosen ones
    (Shazeer et al. 2017, arXiv 1701.06538, eq. 1).

    Every token uses the `shared` experts, as one network of `shared` times the width (DeepSeekMoE, arXiv 2401.06066, section 3.2); with
    `shared_gate` their output is multiplied by ``sigmoid(w x)`` (Qwen2-MoE).

    ``shapes_depend_on_data``: row counts are known only at run time, so torch.compile skips this module. ``score_only`` names the
    matrices that produce scores and no output (see init.py).
    """

    shapes_depend_on_data: ClassVar[bool] = True
    score_only: ClassVar[tuple[str, ...]] = ("router.proj", "router.noise_proj", "shared_gate")

    def __init__(self, shape: FFNShape, *, n_experts: int, width: int, shared: int, shared_gate: bool) -> None:
        super().__init__()
        fn, bias = shape.new_fn(), shape.bias
        self.n_experts = n_experts
        self.experts = experts(shape.gated)(n_experts, shape.d_model, width, fn=fn, bias=bias)
        self.shared = None
        if shared:
            self.shared = network(shape.gated)(
                shape.d_model, shared * width, fn=shape.new_fn(), bias=bias, dropout=shape.dropout
            )
        self.shared_gate = Router(shape.d_model, 1, bias=False) if shared_gate else None
        self.dropout = nn.Dropout(shape.dropout)
        self.extra_loss: Tensor | None = None

    @property
    def out_proj(self) -> nn.Module:  # type: ignore[override]
        return self.experts.out_proj

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        y = self.dropout(self.routed(self.by_member(x), positions.tokens).view(x.shape))
        if self.shared is None:
            return y
        same = self.shared(x, positions)
        return y + (same if self.shared_gate is None else self.shared_gate(x).sigmoid() * same)

    def by_member(self, x: Tensor) -> Tensor:
        """Reshape ``[..., T, D]`` to ``[K, S, T, D]``: K members, or 1."""
        members = len(self.experts.out_proj.weight) if self.experts.out_proj.weight.ndim == 4 else 1
        return x.reshape(members, -1, *x.shape[-2:])

    def routed(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the output of the chosen experts for ``[K, S, T, D]``."""
        raise NotImplementedError

    def load(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how many tokens of ``[K, S, T, D]`` use each expert, int64 ``[E]``, and the number of dropped choices."""
        raise NotImplementedError


class ChosenByTokens(Mixture):
    """A mixture whose tokens have k experts each. An expert takes ``ceil(capacity_factor k T / E)`` tokens of a text of T and drops the
    rest; `capacity_factor` None drops nothing."""

    def __init__(
        self,
        shape: FFNShape,
        router: TokenRouter | HashRouter,
        *,
        n_experts: int,
        width: int,
        shared: int,
        shared_gate: bool,
        capacity_factor: float | None,
        balance: Balance,
        bias_rate: float,
    ) -> None:
        super().__init__(shape, n_experts=n_experts, width=width, shared=shared, shared_gate=shared_gate)
        self.router = router
        self.capacity_factor, self.balance, self.bias_rate = capacity_factor, balance, bias_rate
        self.reads_whole_texts = capacity_factor is not None
        self.per_member: tuple[str, ...] = ()
        self.step_load: Tensor
        if bias_rate:
            self.per_member = ("step_load",)
            self.register_buffer("step_load", torch.zeros(n_experts, dtype=torch.int64), persistent=False)

    def choose(self, x: Tensor, tokens: Tensor | None) -> Choice:
        """Return the experts of every token of ``[K, S, T, D]``."""
        known = None if tokens is None else tokens.reshape(x.shape[:-1])
        choice = self.router(x, known)
        if self.capacity_factor is None:
            return choice
        capacity = math.ceil(self.capacity_factor * choice.experts.shape[-1] * x.shape[-2] / self.n_experts)
        return within_capacity(choice, self.n_experts, capacity)

    def routed(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        choice = self.choose(x, tokens)
        if self.training:
            self._record(choice)
        members, k = len(x), choice.experts.shape[-1]
        first = torch.arange(members, device=x.device).view(-1, 1, 1, 1) * self.n_experts
        expert, dropped = choice.experts + first, members * self.n_experts
        if choice.kept is not None:
            expert = expert.masked_fill(~choice.kept, dropped)
        rows = sort_rows(expert.flatten(), dropped)
        each = exact(self.experts(copies(self.experts.in_proj.cast(x.flatten(0, -2)), rows, k), rows))
        return weighted_sum(each, choice.weights.flatten(0, -2).to(each.dtype), rows)

    def _record(self, choice: Choice) -> None:
        """Store the losses of this pass, and count its tokens."""
        if self.balance.on:
            own = losses(choice, self.balance)
            own = own if self.experts.out_proj.weight.ndim == 4 else own[0]
            self.extra_loss = own if self.extra_loss is None else self.extra_loss + own
        if self.bias_rate:
            found = loads(choice.experts, self.n_experts).sum(-2)
            self.step_load += found if self.step_load.ndim == 2 else found[0]

    def after_step(self) -> None:
        if self.bias_rate and isinstance(self.router, TokenRouter) and self.router.bias is not None:
            move_bias(self.router.bias, self.step_load, self.bias_rate)

    def load(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        choice = self.choose(x, tokens)
        met = choice.experts if choice.kept is None else choice.experts[choice.kept][None, None, None]
        return loads(met, self.n_experts).sum((0, 1)), torch.tensor(choice.experts.numel() - met.numel())


class ChosenByExperts(Mixture):
    """A mixture whose experts have ``round(capacity_factor T / E)`` tokens of a text of T each, between 1 and T."""

    reads_whole_texts = True

    def __init__(
        self,
        shape: FFNShape,
        *,
        n_experts: int,
        width: int,
        shared: int,
        shared_gate: bool,
        capacity_factor: float,
    ) -> None:
        super().__init__(shape, n_experts=n_experts, width=width, shared=shared, shared_gate=shared_gate)
        self.router = ExpertRouter(shape.d_model, n_experts)
        self.capacity_factor = capacity_factor

    def routed(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        members, texts, length, d_model = x.shape
        chosen, weights, _ = self.router(x, expert_capacity(self.capacity_factor, length, self.n_experts))
        text = torch.arange(members * texts, device=x.device).view(members, texts, 1, 1)
        of_row = (chosen + text * length).transpose(1, 2).flatten()  # grouped by expert, [K E S C]
        group = torch.arange(members * self.n_experts, device=x.device)
        rows = sort_rows(group.repeat_interleave(len(of_row) // len(group)), len(group))
        y = exact(self.experts(x.flatten(0, -2).index_select(0, of_row), rows))
        weighted = y * weights.transpose(1, 2).reshape(-1, 1).to(y.dtype)
        return x.new_zeros(members * texts * length, d_model).index_add(0, of_row, weighted)

    def load(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        capacity = expert_capacity(self.capacity_factor, x.shape[-2], self.n_experts)
        each = torch.full((self.n_experts,), len(x) * x.shape[1] * capacity, device=x.device)
        return each, torch.zeros((), dtype=torch.int64)


def expert_capacity(factor: float, length: int, n_experts: int) -> int:
    """Return how many tokens of a text an expert chooses."""
    return min(length, max(1, round(factor * length / n_experts)))
