"""The networks of a layer's experts, as stacked weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmablate.model.ffn.base import Pointwise
from lmablate.model.ffn.grouped import Rows, grouped_product
from lmablate.model.primitives import Bias, Matrix


class ExpertBias(Bias):
    """One offset per channel and expert, flat, so that it is a vector like every bias: ``[E r]``, with members ``[K, E r]``."""

    def __init__(self, n_experts: int, width: int) -> None:
        super().__init__(n_experts * width)

    def of_rows(self, y: Tensor, rows: Rows) -> Tensor:
        """Add to sorted rows ``[M, r]`` the offset of their expert; dropped rows get that of the last one."""
        each = self.weight.view(-1, y.shape[-1]).to(y.dtype)
        return y + each.index_select(0, rows.expert.clamp(max=len(each) - 1))


class Experts(Matrix):
    """One matrix per expert, ``[E, d_out, d_in]``, applied to the rows of that expert: ``[M, d_in] -> [M, d_out]``. With members the
    weight is ``[K, E, ...]``, and the rows are sorted by member and expert."""

    def __init__(self, n_experts: int, d_in: int, d_out: int, *, bias: bool) -> None:
        super().__init__(d_out, d_in)
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))
        self.bias = ExpertBias(n_experts, d_out) if bias else None

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        x, weight = self.cast(x), self.weight.flatten(0, -3)
        y = grouped_product(x, weight.to(x.dtype), rows)
        return y if self.bias is None else self.bias.of_rows(y, rows)

    def cast(self, x: Tensor) -> Tensor:
        """Return `x` in the dtype of the products."""
        return x.to(self.compute_dtype or self.weight.dtype)


class PlainExperts(nn.Module):
    """Plain networks of experts, ``W_out f(W_in x)``."""

    def __init__(self, n_experts: int, d_model: int, width: int, *, fn: Pointwise, bias: bool) -> None:
        super().__init__()
        self.in_proj = Experts(n_experts, d_model, width, bias=bias)
        self.fn = fn
        self.out_proj = Experts(n_experts, width, d_model, bias=bias)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        return self.out_proj(self.fn(self.in_proj(x, rows)), rows)


class GatedExperts(nn.Module):
    """Gated networks of experts, ``W_out (f(W_gate x) * W_in x)``."""

    def __init__(self, n_experts: int, d_model: int, width: int, *, fn: Pointwise, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Experts(n_experts, d_model, width, bias=bias)
        self.in_proj = Experts(n_experts, d_model, width, bias=bias)
        self.fn = fn
        self.out_proj = Experts(n_experts, width, d_model, bias=bias)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        x = self.in_proj.cast(x)
        return self.out_proj(self.fn(self.gate_proj(x, rows)) * self.in_proj(x, rows), rows)


def experts(gated: bool) -> type[PlainExperts] | type[GatedExperts]:
    """Return the class of experts for an activation that gates, or does not."""
    return GatedExperts if gated else PlainExperts
