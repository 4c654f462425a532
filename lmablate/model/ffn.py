"""The two feed-forward networks, plain and gated, that serve every activation: ``[..., D] -> [..., D]``."""

from collections.abc import Callable

from torch import Tensor, nn

from lmablate.model.posemb import Positions
from lmablate.model.primitives import Linear

Pointwise = Callable[[Tensor], Tensor]


class PlainFFN(nn.Module):
    """``W_out f(W_in x)`` (Vaswani et al. 2017, section 3.3): ``2 d_model d_ff`` weights."""

    def __init__(self, d_model: int, d_ff: int, *, fn: Pointwise, bias: bool, dropout: float) -> None:
        super().__init__()
        self.in_proj = Linear(d_model, d_ff, bias=bias)
        self.fn = fn
        self.out_proj = Linear(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        return self.dropout(self.out_proj(self.fn(self.in_proj(x))))


class GatedFFN(nn.Module):
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
