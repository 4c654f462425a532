"""Positions that are added to the attention scores, the same in every layer."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.primitives import Embedding
from lmablate.model.types import PositiveInt


class ALiBi(PosEmb):
    """A bias of ``-m_h (i - j)`` on the score of query i and key j (Press et al. 2021, arXiv 2108.12409). If queries read later keys,
    it is ``-m_h |i - j|``, as in MPT's option for prefixes.

    The slopes m_h are ``2^(-8h/H)``. A head count that is not a power of two takes the slopes of the next lower power and every other
    slope of the next higher one, as in the paper.
    """

    def __init__(self, shape: PositionShape) -> None:
        super().__init__(shape)
        self.looks_ahead = shape.looks_ahead
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(alibi_slopes(shape.n_heads)), persistent=False)

    def score_bias(self, length: int) -> Tensor | None:
        t = torch.arange(length, device=self.slopes.device)
        return self.score_bias_at(t[:, None] - t[None, :])

    def score_bias_at(self, distance: Tensor) -> Tensor:
        return self.slopes[:, None, None] * -(distance.abs() if self.looks_ahead else distance)


def alibi_slopes(n_heads: int) -> list[float]:
    """Return the slope of each head in ALiBi."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return slopes + between[: n_heads - power]


class T5Bias(PosEmb):
    """One learned number per head and bucket of distances, shared by all layers (Raffel et al. 2019, arXiv 1910.10683, section 2.1).
    Half of the buckets have one distance each; the rest grow in logarithmic steps up to ``max_distance``.

    If queries read later keys, these have the second half of the buckets, as in T5's encoder.
    """

    def __init__(self, shape: PositionShape, *, n_buckets: PositiveInt, max_distance: PositiveInt) -> None:
        super().__init__(shape)
        if n_buckets < 2 or n_buckets % 2 or max_distance <= n_buckets // 2:
            raise ConfigError(
                f"posemb=t5 needs an even posemb.n_buckets of at least 2 (got {n_buckets}) and a posemb.max_distance above half of it "
                f"(got {max_distance})"
            )
        if shape.looks_ahead and n_buckets % 4:
            raise ConfigError(
                "posemb=t5 halves its buckets between keys before and after a query where both are read: "
                f"posemb.n_buckets={n_buckets} must then be a multiple of 4"
            )
        self.n_buckets, self.max_distance, self.ways = n_buckets, max_distance, 1 + shape.looks_ahead
        self.table = Embedding(n_buckets, shape.n_heads)
        self.table.fan_in = shape.d_model

    def buckets(self, length: int, device: torch.device) -> Tensor:
        """Return the bucket of each query and key, int64 ``[T, T]``; later keys that are not read fall into bucket 0."""
        t = torch.arange(length, device=device)
        return self.bucket_of(t[:, None] - t[None, :])

    def bucket_of(self, behind: Tensor) -> Tensor:
        """Return the bucket of each distance, int64; a negative distance is that of a later key."""
        distance = behind.clamp(min=0) if self.ways == 1 else behind.abs()
        n_buckets = self.n_buckets // self.ways
        exact = n_buckets // 2
        steps = (
            (distance.clamp(min=1).double() / exact).log() / math.log(self.max_distance / exact) * (n_buckets - exact)
        )
        # a distance on the edge of a bucket belongs to the upper one, whatever the rounding
        far = (exact + (steps + 1e-9).long()).clamp(max=n_buckets - 1)
        bucket = torch.where(distance < exact, distance, far)
        return bucket if self.ways == 1 else bucket + n_buckets * (behind < 0)

    def score_bias(self, length: int) -> Tensor | None:
        return self.table.shared(self.buckets(length, self.table.weight.device)).movedim(-1, -3)

    def score_bias_at(self, distance: Tensor) -> Tensor:
        return self.table.shared(self.bucket_of(distance)).movedim(-1, -3)

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        return settings["n_buckets"] * shape.n_heads
