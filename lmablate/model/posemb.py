"""Axis ``posemb``: how a model knows where a token stands.

A position embedding is built as ``PosEmb(shape, **yaml)`` and has three hooks that do nothing unless overridden:
``embed`` adds to the token embeddings, ``rotate`` turns queries and keys, ``score_bias`` is added to the scaled
attention scores. Attention calls the hooks and never asks which option it has.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lmablate.errors import ConfigError
from lmablate.model.primitives import Embedding
from lmablate.model.types import PositiveFloat, PositiveInt


class PositionShape(NamedTuple):
    """The sizes a position embedding may need."""

    d_model: int
    n_heads: int
    head_dim: int
    context_length: int


class Positions(NamedTuple):
    """What one forward pass hands to every attention branch.

    ``rotate(q, k)`` takes and returns ``[..., H, T, head_dim]``; ``bias`` is None or broadcasts to ``[..., H, T, T]``.
    """

    rotate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bias: Tensor | None


class PosEmb(nn.Module):
    """Base, and the option ``none``: no position information but the causal mask's (NoPE).

    ``is_token_table`` marks an option whose parameters are rows added to the token embedding, which are counted as
    embedding parameters.
    """

    is_token_table: ClassVar[bool] = False

    def __init__(self, shape: PositionShape) -> None:
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """``[..., T, D] -> [..., T, D]``."""
        return x

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., H, T, head_dim]`` each; the heads of k may be fewer."""
        return q, k

    def score_bias(self, length: int) -> Tensor | None:
        """``[H, T, T]`` (or with lead axes), query by key, added to ``q k^T / sqrt(head_dim)`` before the mask."""
        return None

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        """The parameter count in closed form; `settings` are the keys of the YAML."""
        return 0


class Learned(PosEmb):
    """One learned row a position, added to the token embedding (GPT-2). Defined up to ``context_length`` only."""

    is_token_table = True

    def __init__(self, shape: PositionShape) -> None:
        super().__init__(shape)
        self.table = Embedding(shape.context_length, shape.d_model)

    def embed(self, x: Tensor) -> Tensor:
        length, rows = x.shape[-2], self.table.weight.shape[-2]
        if length > rows:
            raise ConfigError(
                f"posemb=learned has rows for {rows} positions and was given {length} tokens: raise model.context_length"
            )
        return x + self.table.shared(torch.arange(length, device=x.device))

    @staticmethod
    def n_params(shape: PositionShape, settings: Mapping[str, Any]) -> int:
        return shape.context_length * shape.d_model


class Sinusoidal(PosEmb):
    """``scale * [sin(t w_i), cos(t w_i)]``, ``w_i = theta^(-2i/D)`` (Vaswani et al. 2017, section 3.5).

    The 2017 model multiplies unit-variance token rows; `scale` keeps that ratio for rows that start smaller.
    """

    def __init__(self, shape: PositionShape, *, theta: PositiveFloat, scale: PositiveFloat) -> None:
        super().__init__(shape)
        self.theta, self.scale, self.d_model = theta, scale, shape.d_model
        self.table: Tensor
        self.register_buffer("table", self._rows(shape.context_length), persistent=False)

    def _rows(self, length: int) -> Tensor:
        half = torch.arange(0, self.d_model, 2, dtype=torch.float64)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * self.theta ** (-half / self.d_model)
        rows = torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[:, : self.d_model]
        return (self.scale * rows).float()

    def embed(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        table = self.table if length <= len(self.table) else self._rows(length).to(x.device)
        return x + table[:length]


class RoPE(PosEmb):
    """Rotates the pair ``(x_i, x_{i + head_dim/2})`` of q and k by ``t * rope_theta^(-2i/head_dim)`` (Su et al. 2021,
    arXiv 2104.09864, eq. 34; halves layout, as in Llama), so that ``q_t . k_s`` depends on ``t - s`` only."""

    def __init__(self, shape: PositionShape, *, rope_theta: PositiveFloat) -> None:
        super().__init__(shape)
        if shape.head_dim % 2:
            raise ConfigError(
                f"posemb=rope rotates pairs of channels, and model.head_dim is {shape.head_dim}: choose an even model.head_dim "
                "(or model.d_model / model.n_heads)"
            )
        self.rope_theta, self.head_dim = rope_theta, shape.head_dim
        self.cos: Tensor
        self.sin: Tensor
        cos, sin = self._tables(shape.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        frequency = self.rope_theta ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return angle.cos().float(), angle.sin().float()

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        length = q.shape[-2]
        cos, sin = self.cos, self.sin
        if length > len(cos):  # evaluation beyond the training length
            cos, sin = (table.to(q.device) for table in self._tables(length))
        cos, sin = cos[:length], sin[:length]

        def turn(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

        return turn(q), turn(k)


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
