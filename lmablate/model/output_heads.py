"""Modules between the stack and the logits: LastState for ``data=compression``, the transform of a masked model's head, and the head of
a replaced-token detector."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.model.posemb.absolute import sinusoids
from lmablate.model.primitives import Embedding, Linear, exact

THETA = 10000.0


class LastState(nn.Module):
    """``[..., T, D] -> [..., T, D]``: every position answers from the state of the last token.

    Position t gets ``f(h_T + p_t)`` with the state h_T of the last token and the sinusoids p_t. ``f`` is two layers of equal width,
    ``gelu(W norm(x))`` each, and a norm (the decoder of MAD's compression task, Poli et al. 2024, arXiv 2403.17844).
    """

    def __init__(self, d_model: int, length: int, *, new_norm: Callable[[], nn.Module], bias: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(new_norm() for _ in range(3))
        self.layers = nn.ModuleList(Linear(d_model, d_model, bias=bias) for _ in range(2))
        self.places: Tensor
        where = torch.empty(0).device  # the device the model is built on
        table = torch.empty(length, d_model) if where.type == "meta" else sinusoids(length, d_model, THETA).float()
        self.register_buffer("places", table.to(where), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., -1:, :] + self.places[: x.shape[-2]]
        for norm, layer in zip(self.norms[:2], self.layers, strict=True):
            x = exact(F.gelu(layer(norm(x))))
        return self.norms[2](x)

    @staticmethod
    def matmul_params(d_model: int) -> int:
        """Return the matrix entries, which are the multiply-adds per position."""
        return 2 * d_model * d_model

    @staticmethod
    def n_bias_and_gain_params(d_model: int, *, one_norm: int, bias: bool) -> int:
        """Return the number of parameters outside the matrices; a norm has `one_norm`."""
        return 3 * one_norm + (2 * d_model if bias else 0)


class Transform(nn.Module):
    """``[..., T, D] -> [..., T, E]``: ``norm(f(W x + b))`` before the head of a masked model, E being the width of the token rows
    (Devlin et al. 2018, arXiv 1810.04805; its released code)."""

    def __init__(
        self, d_model: int, width: int, *, fn: Callable[[Tensor], Tensor], norm: nn.Module, bias: bool
    ) -> None:
        super().__init__()
        self.proj = Linear(d_model, width, bias=bias)
        self.fn = fn
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(exact(self.fn(self.proj(x))))

    @staticmethod
    def n_bias_and_gain_params(width: int, *, one_norm: int, bias: bool) -> int:
        """Return the number of parameters outside the matrix; the norm has `one_norm`."""
        return one_norm + (width if bias else 0)


class Detector(nn.Module):
    """``[..., D] -> [..., 1]``: the logit that a token was replaced, ``w f(W x + b) + c`` (ELECTRA, Clark et al. 2020, arXiv
    2003.10555, eq. 2; its released code). It replaces the head and needs no token table."""

    proj = bias = None  # those of a vocabulary head

    def __init__(self, d_model: int, *, fn: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_model, bias=bias)
        self.fn = fn
        self.replaced = Linear(d_model, 1, bias=bias)

    def forward(self, x: Tensor, table: Embedding) -> Tensor:
        return exact(self.replaced(self.fn(self.dense(x))))

    @staticmethod
    def matmul_params(d_model: int) -> int:
        """Return the matrix entries, which are the multiply-adds per token."""
        return d_model * d_model + d_model

    @staticmethod
    def n_bias_and_gain_params(d_model: int, *, bias: bool) -> int:
        """Return the number of parameters outside the matrices."""
        return d_model + 1 if bias else 0
