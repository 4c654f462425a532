"""Positions that are added to the attention scores, the same in every layer."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmablate.errors import ConfigError
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.primitives import Embedding
from lmablate.model.types import PositiveInt


class ALiBi(PosEmb):
    """Adds ``-m_h (i - j)`` to the score of query i and key j (Press et al. 2021, arXiv 2108.12409).

    The slopes m_h are ``2^(-8h/H)``; a head count that is no power of two takes the slopes of the next lower power and
    every other slope of the next higher one, as the authors do.
    """

    def __init__(self, shape: PositionShape) -> None:
        super().__init__(shape)
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(alibi_slopes(shape.n_heads)), persistent=False)

    def score_bias(self, length: int) -> Tensor | None:
        t = torch.arange(length, device=self.slopes.device)
        return self.slopes[:, None, None] * (t[None, :] - t[:, None])


def alibi_slopes(n_heads: int) -> list[float]:
    """The per-head slopes of ALiBi."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: n_heads - power]


class T5Bias(PosEmb):
    """One learned number a head and a bucket of distances, shared by all layers (Raffel et al. 2019, arXiv 1910.10683,
    section 2.1). Half of the buckets hold one distance each, the rest grow in logarithmic steps up to ``max_distance``."""

    def __init__(self, shape: PositionShape, *, n_buckets: PositiveInt, max_distance: PositiveInt) -> None:
        super().__init__(shape)
        if n_buckets < 2 or n_buckets % 2 or max_distance <= n_buckets // 2:
            raise ConfigError(
                f"posemb=t5 needs an even posemb.n_buckets of at least 2 (got {n_buckets}) and a posemb.max_distance above half of it "
                f"(got {max_distance})"
            )
        self.n_buckets, self.max_distance = n_buckets, max_distance
        self.table = Embedding(n_buckets, shape.n_heads)

    def buckets(self, length: int, device: torch.device) -> Tensor:
        """The bucket of each query and key, int64 ``[T, T]``; keys in the future fall into bucket 0 and are masked."""
        t = torch.arange(length, device=device)
        distance = (t[:, None] - t[None, :]).clamp(min=0)
        exact = self.n_buckets // 2
        steps = (
            (distance.clamp(min=1).double() / exact).log()
            / math.log(self.max_distance / exact)
            * (self.n_buckets - exact)
        )
        # a distance on the edge of a bucket belongs to the upper one, and rounding must not put it into the lower
        far = (exact + (steps + 1e-9).long()).clamp(max=self.n_buckets - 1)
        return torch.where(distance < exact, distance, far)

    def score_bias(self, length: int) -> Tensor | None:
        return self.table.shared(self.buckets(length, self.table.weight.device)).movedim(-1, -3)

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        return settings["n_buckets"] * shape.n_heads
