"""Position embeddings that are added to the token embedding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.primitives import Embedding
from lmablate.model.types import PositiveFloat


class Learned(PosEmb):
    """One learned row per position, added to the token embedding (GPT-2). Defined up to ``context_length`` only."""

    is_token_table = True
    bounded = True

    def __init__(self, shape: PositionShape) -> None:
        super().__init__(shape)
        self.table = Embedding(shape.context_length, shape.d_model)

    def embed(self, x: Tensor) -> Tensor:
        return self.embed_chunk(x, 0, None)

    def embed_chunk(self, x: Tensor, start: int, tables: None) -> Tensor:
        length, rows = start + x.shape[-2], self.table.weight.shape[-2]
        if length > rows:
            raise ConfigError(
                f"posemb=learned has rows for {rows} positions and was given {length} tokens: raise model.context_length"
            )
        return x + self.table.shared(torch.arange(start, length, device=x.device))

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        return shape.context_length * shape.d_model


def sinusoids(length: int, width: int, theta: float) -> Tensor:
    """Return float64 ``[T, D]``: row t is ``[sin(t w_0), cos(t w_0), sin(t w_1), ...]`` with ``w_i = theta^(-2i/D)`` (Vaswani et al.
    2017, section 3.5)."""
    half = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    angle = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * theta ** (-half / width)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[:, :width]


class Sinusoidal(PosEmb):
    """``scale * [sin(t w_i), cos(t w_i)]``, ``w_i = theta^(-2i/D)`` (Vaswani et al. 2017, section 3.5). The 2017 model multiplies
    unit-variance token rows; `scale` keeps that ratio for rows that start smaller."""

    def __init__(self, shape: PositionShape, *, theta: PositiveFloat, scale: PositiveFloat) -> None:
        super().__init__(shape)
        self.theta, self.scale, self.d_model = theta, scale, shape.d_model
        self.table: Tensor
        self.register_buffer("table", self._rows(shape.context_length).to(torch.empty(0).device), persistent=False)

    def _rows(self, length: int) -> Tensor:
        return (self.scale * sinusoids(length, self.d_model, self.theta)).float()

    def embed(self, x: Tensor) -> Tensor:
        return self.embed_chunk(x, 0, self.chunk_tables(x.shape[-2]))

    def chunk_tables(self, length: int) -> Tensor:
        return self.table if length <= len(self.table) else self._rows(length).to(self.table.device)

    def embed_chunk(self, x: Tensor, start: int, tables: Tensor) -> Tensor:
        return x + tables[start : start + x.shape[-2]]
