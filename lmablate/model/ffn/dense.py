"""The two feed-forward networks, plain and gated, that serve every activation: ``[..., D] -> [..., D]``.

`weights_per_token` is the multiply-adds of their matrices with a token, which is their entries; `n_vector_params` the rest.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lmablate.model.ffn.base import FeedForward, FFNOption, FFNShape, Pointwise
from lmablate.model.posemb import Positions
from lmablate.model.primitives import Linear


class PlainFFN(FeedForward):
    """``W_out f(W_in x)`` (Vaswani et al. 2017, section 3.3): ``2 d_model d_ff`` weights."""

    def __init__(self, d_model: int, d_ff: int, *, fn: Pointwise, bias: bool, dropout: float) -> None:
        super().__init__()
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.fn = fn
        self.out_proj = Linear(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        return self.dropout(self.out_proj(self.fn(self.in_proj(x))))

    @staticmethod
    def weights_per_token(d_model: int, d_ff: int) -> int:
        return 2 * d_model * d_ff

    @staticmethod
    def n_vector_params(d_model: int, d_ff: int, *, bias: bool) -> int:
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

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        return self.dropout(self.out_proj(self.fn(self.gate_proj(x)) * self.in_proj(x)))

    @staticmethod
    def weights_per_token(d_model: int, d_ff: int) -> int:
        return 3 * d_model * d_ff

    @staticmethod
    def n_vector_params(d_model: int, d_ff: int, *, bias: bool) -> int:
        return 2 * d_ff + d_model if bias else 0


def network(gated: bool) -> type[PlainFFN] | type[GatedFFN]:
    """The feed-forward network of an activation that gates, or does not."""
    return GatedFFN if gated else PlainFFN


def network_params(shape: FFNShape, width: int) -> int:
    """Weights and biases of one network of this width."""
    kind = network(shape.gated)
    vectors = kind.n_vector_params(shape.d_model, width, bias=shape.bias)
    return kind.weights_per_token(shape.d_model, width) + vectors


class Dense(FFNOption):
    """One network of width `d_ff`, which every token meets."""

    is_dense: ClassVar[bool] = True

    def branch(self, shape: FFNShape, *, layer: int) -> PlainFFN | GatedFFN:
        kind = network(shape.gated)
        return kind(shape.d_model, shape.d_ff, fn=shape.new_fn(), bias=shape.bias, dropout=shape.dropout)

    def weights_per_token(self, shape: FFNShape, *, layer: int) -> float:
        return network(shape.gated).weights_per_token(shape.d_model, shape.d_ff)

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        return network_params(shape, shape.d_ff)
