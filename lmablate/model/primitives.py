"""The few modules that own weights. Every other part is written against these.

Activations are ``[*lead, B, T, D]``: nothing here, and nothing built on it, assumes how many axes stand before the last
ones it names. A bias is added after the product and a gain after the normalisation, as separate operations, because
``F.linear(x, w) + b`` and ``F.linear(x, w, b)`` round differently and only the first has a batched counterpart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gain(nn.Module):
    """``y = x * g`` with one learned factor a channel, starting at 1; x is ``[..., D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Bias(nn.Module):
    """``y = x + b`` with one learned offset a channel, starting at 0; x is ``[..., D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Matrix(nn.Module):
    """Base of the modules whose weight is drawn at random (see init.py): ``weight`` is ``[rows, columns]``.

    ``compute_dtype`` is the precision of the product, None for that of the input; the result comes back in the input's.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.compute_dtype: torch.dtype | None = None

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.compute_dtype is None:
            return F.linear(x, weight)
        return F.linear(x.to(self.compute_dtype), weight.to(self.compute_dtype)).to(x.dtype)


class Linear(Matrix):
    """``y = x W^T (+ b)``: ``[..., d_in] -> [..., d_out]``."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool) -> None:
        super().__init__(d_out, d_in)
        self.bias = Bias(d_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, self.weight)
        return y if self.bias is None else self.bias(y)


class Embedding(Matrix):
    """A table of rows: int64 ids ``[...] -> [..., width]``."""

    def __init__(self, n_rows: int, width: int) -> None:
        super().__init__(n_rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Head(nn.Module):
    """Logits ``[..., D] -> [..., vocab_size]``; tied heads use the token table instead of a matrix of their own."""

    def __init__(self, d_model: int, vocab_size: int, *, tied: bool) -> None:
        super().__init__()
        self.proj = None if tied else Linear(d_model, vocab_size, bias=False)

    def forward(self, x: Tensor, table: Embedding) -> Tensor:
        return table.product(x, table.weight) if self.proj is None else self.proj(x)


def set_compute_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Run every matrix product of `model` in `dtype` (None: the precision of the weights). Attention is left alone."""
    for module in model.modules():
        if isinstance(module, Matrix):
            module.compute_dtype = dtype
