"""The plain and the gated feed-forward network, for every activation: ``[..., D] -> [..., D]``.

`matmul_params` is the number of matrix entries, which are the multiply-adds per token; `n_bias_and_gain_params` the rest.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lmablate.model.ffn.base import FeedForward, FFNOption, FFNShape, Pointwise
from lmablate.model.posemb import AttentionContext
from lmablate.model.primitives import Linear, apply_all


class PlainFFN(FeedForward):
    """``W_out f(W_in x)`` (Vaswani et al. 2017, section 3.3): ``2 d_model d_ff`` weights."""

    def __init__(self, d_model: int, d_ff: int, *, fn: Pointwise, bias: bool, dropout: float) -> None:
        super().__init__()
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.fn = fn
        self.out_proj = Linear(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.dropout(self.out_proj(self.fn(self.in_proj(x))))

    @staticmethod
    def matmul_params(d_model: int, d_ff: int) -> int:
        return 2 * d_model * d_ff

    @staticmethod
    def n_bias_and_gain_params(d_model: int, d_ff: int, *, bias: bool) -> int:
        return d_ff + d_model if bias else 0


class GatedFFN(FeedForward):
    """``W_out (f(W_gate x) * W_in x)`` (Shazeer 2020, arXiv 2002.05202, eq. 6): ``3 d_model d_ff`` weights."""

    def __init__(self, d_model: int, d_ff: int, *, fn: Pointwise, bias: bool, dropout: float) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.fn = fn
        self.out_proj = Linear(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        gate, y = apply_all(x, self.gate_proj, self.in_proj)
        return self.dropout(self.out_proj(self.fn(gate) * y))

    @staticmethod
    def matmul_params(d_model: int, d_ff: int) -> int:
        return 3 * d_model * d_ff

    @staticmethod
    def n_bias_and_gain_params(d_model: int, d_ff: int, *, bias: bool) -> int:
        return 2 * d_ff + d_model if bias else 0


def network(gated: bool) -> type[PlainFFN] | type[GatedFFN]:
    """Return the network class for an activation that gates, or does not."""
    return GatedFFN if gated else PlainFFN


def network_params(shape: FFNShape, width: int) -> int:
    """Return the number of weights and biases of one network of this width."""
    kind = network(shape.gated)
    vectors = kind.n_bias_and_gain_params(shape.d_model, width, bias=shape.bias)
    return kind.matmul_params(shape.d_model, width) + vectors


class Dense(FFNOption):
    """One network of width `d_ff`, which every token uses."""

    is_dense: ClassVar[bool] = True

    def branch(self, shape: FFNShape, *, layer: int) -> PlainFFN | GatedFFN:
        kind = network(shape.gated)
        return kind(shape.d_model, shape.d_ff, fn=shape.new_fn(), bias=shape.bias, dropout=shape.dropout)

    def matmul_params(self, shape: FFNShape, *, layer: int) -> float:
        return network(shape.gated).matmul_params(shape.d_model, shape.d_ff)

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        return network_params(shape, shape.d_ff)
