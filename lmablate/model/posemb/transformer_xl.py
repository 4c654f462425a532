"""Relative positions of Transformer-XL, with a projection and two bias vectors per layer."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.model.posemb.absolute import sinusoids
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.primitives import Bias, Linear, exact
from lmablate.model.types import PositiveFloat


class TransformerXL(PosEmb):
    """The score of query i and key j is ``q_i k_j + q_i W_R r_{i-j} + u k_j + v W_R r_{i-j}``, over sqrt(head_dim), where ``r_d`` is
    the sinusoid of distance d (Dai et al. 2019, arXiv 1901.02860, section 3.3; Gopher and Chinchilla).

    ``W_R`` ``[H * head_dim, D]`` and u, v ``[H * head_dim]`` are learned in every layer; u and v start at 0. Later keys, if they are
    read, have negative distances (XLNet, Yang et al. 2019, arXiv 1906.08237, appendix A.2).
    """

    def __init__(self, shape: PositionShape, *, theta: PositiveFloat) -> None:
        super().__init__(shape)
        self.theta, self.d_model, self.looks_ahead = theta, shape.d_model, shape.looks_ahead
        self.layers = nn.ModuleList(RelativeTerms(shape) for _ in range(shape.n_layers))
        self.table: Tensor
        self.register_buffer("table", self._rows(shape.context_length).to(torch.empty(0).device), persistent=False)

    def _rows(self, length: int) -> Tensor:
        return sinusoids(length, self.d_model, self.theta).float()

    def relative(self, q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        length = q.shape[-2]
        table = self.table if length <= len(self.table) else self._rows(length).to(q.device)
        return self.layers[layer](q, table[:length], self.looks_ahead)

    def chunk_tables(self, length: int) -> list[Tensor]:
        """Return ``W_R r_d`` of every layer, ``[H, T, head_dim]``, which depends on the weights alone."""
        table = self.table if length <= len(self.table) else self._rows(length).to(self.table.device)
        return [terms.keys(table[:length]) for terms in self.layers if isinstance(terms, RelativeTerms)]

    def relative_at(self, q: Tensor, layer: int, distance: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor]:
        terms = self.layers[layer]
        assert isinstance(terms, RelativeTerms)
        return terms.at(q, tables[layer], distance)

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        inner = shape.n_heads * shape.head_dim
        return shape.n_layers * (shape.d_model * inner + 2 * inner)

    @staticmethod
    def matmul_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """Return the multiply-adds of ``W_R r_d``, which is computed once per batch for the T distances (2T - 1 with later keys). The
        count is exact for a batch of one text, up to rounding, and an upper bound for more."""
        own = shape.n_layers * shape.d_model * shape.n_heads * shape.head_dim
        return 2 * own - own // shape.context_length if shape.looks_ahead else own

    @staticmethod
    def score_macs(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        return shape.n_heads * shape.head_dim


class RelativeTerms(nn.Module):
    """The weights of one layer: ``(q + u, (q + v) W_R r)`` from q ``[..., H, T, head_dim]`` and r ``[T, D]``."""

    def __init__(self, shape: PositionShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        inner = shape.n_heads * shape.head_dim
        self.proj = Linear(shape.d_model, inner, bias=False)
        self.content = Bias(inner)  # u
        self.position = Bias(inner)  # v

    def forward(self, q: Tensor, table: Tensor, looks_ahead: bool) -> tuple[Tensor, Tensor]:
        flat = q.transpose(-3, -2).flatten(-2)
        rows = table.flip(0)  # largest distance first
        if looks_ahead:
            rows = torch.cat((rows, ahead(table)))
        keys = self.keys(rows)
        return self._heads(self.content(flat)), exact(by_key(self._heads(self.position(flat)) @ keys.mT))

    def keys(self, rows: Tensor) -> Tensor:
        """Return the projected sinusoids, ``[T, D] -> [H, T, head_dim]``."""
        return self._heads(self.proj.shared(rows))

    def at(self, q: Tensor, keys: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return both terms for q ``[..., H, n, head_dim]``, `keys` of the distances 0, 1, 2, ... and `distance` ``[n, K]``."""
        flat = q.transpose(-3, -2).flatten(-2)
        scores = exact(self._heads(self.position(flat)) @ keys[:, : int(distance.max()) + 1].mT)
        wanted = distance.clamp(min=0).expand(*scores.shape[:-1], -1)
        return self._heads(self.content(flat)), scores.gather(-1, wanted)

    def _heads(self, x: Tensor) -> Tensor:
        """``[..., T, H * head_dim] -> [..., H, T, head_dim]``."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)


def ahead(table: Tensor) -> Tensor:
    """Return the sinusoids ``[T - 1, D]`` of the distances -1, ..., -(T - 1): sines change their sign, cosines do not."""
    sign = torch.ones(table.shape[-1], dtype=table.dtype, device=table.device)
    sign[::2] = -1.0
    return table[1:] * sign


def by_key(scores: Tensor) -> Tensor:
    """Reorder columns of distance T-1, ..., 0 to keys 0, ..., T-1: query i moves left by T-1-i (Dai et al. 2019, appendix B). Entries
    above the diagonal have no meaning and are masked by attention, unless the columns continue to distance -(T-1)."""
    length = scores.shape[-2]
    if scores.shape[-1] == length:
        padded = F.pad(scores, (1, 0)).flatten(-2)[..., length:]
        return padded.unflatten(-1, (length, length))
    wide = scores.shape[-1]
    moved = F.pad(scores, (0, 1)).flatten(-2)[..., length - 1 : length - 1 + length * wide]
    return moved.unflatten(-1, (length, wide))[..., :length]
