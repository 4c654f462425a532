"""Rotary positions: queries and keys are rotated by an angle proportional to their position."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.primitives import exact
from lmablate.model.types import PositiveFloat

RotaryFraction = Annotated[float, Field(gt=0, lt=1)]  # of the channels of a head; None: all
Layout = Literal["pairs"]  # None: halves


class Spectrum(NamedTuple):
    """Angles: `frequencies`, float64 ``[W / 2]``, in radians per position; `amplitude`, the factor of the rotated channels."""

    frequencies: Tensor
    amplitude: float


@dataclass(eq=False, repr=False, kw_only=True)
class Rotary(PosEmb):
    """Base class of the rotary options, which rotate channel pairs of q and k by ``t * w_i``, so that ``q_t . k_s`` depends on ``t -
    s`` only (Su et al. 2021, arXiv 2104.09864, eq. 34).

    The first `rotary_fraction` of a head's channels are rotated (None: all; GPT-J 0.25, Pythia 0.25). Of these W channels, pair i is
    ``(x_i, x_{i + W/2})``, as in Llama, or with ``layout=pairs`` ``(x_2i, x_{2i+1})``, as in the paper and GPT-J. Both are one model up
    to the order of the rows of ``q_proj`` and ``k_proj`` (:func:`pairs_to_halves`).

    An option is a dataclass: its fields are the keys of its YAML, and `check` refuses numbers that cannot be combined.
    """

    shape: PositionShape = field(kw_only=False)
    rope_theta: PositiveFloat
    rotary_fraction: RotaryFraction | None
    layout: Layout | None

    def __post_init__(self) -> None:
        super().__init__(self.shape)
        head_dim, fraction = self.shape.head_dim, self.rotary_fraction
        self.pairs, self.context_length = self.layout is not None, self.shape.context_length
        self.width = head_dim if fraction is None else int(head_dim * fraction)
        if self.width % 2 or not self.width:
            part = "" if fraction is None else f" times posemb.rotary_fraction={fraction}"
            raise ConfigError(
                f"rotary positions turn pairs of channels, and {head_dim} channels a head{part} are {self.width}: choose "
                "an even model.head_dim (or model.d_model / model.n_heads; attention.rope_head_dim with attention=mla), and a "
                "posemb.rotary_fraction that leaves an even number"
            )
        self.check()
        self.cos: Tensor
        self.sin: Tensor
        self.fill()

    def check(self) -> None:
        """Raise ConfigError for numbers that cannot be combined."""

    def spectrum(self, length: int) -> Spectrum:
        """Return the angles for a text of `length` tokens."""
        raise NotImplementedError

    def plain_frequencies(self) -> Tensor:
        """Return ``w_i = rope_theta^(-2i/W)``, float64 ``[W / 2]``."""
        return self.rope_theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64, device="cpu") / self.width)

    def fill(self) -> None:
        """Compute the tables of the training length."""
        cos, sin = self._tables(self.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        frequencies, amplitude = self.spectrum(length)
        where = torch.empty(0).device  # the device the model is built on
        if where.type == "meta":  # else torch would load its compiler, which takes over a second
            return torch.empty(length, len(frequencies)), torch.empty(length, len(frequencies))
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequencies.to(where)
        return (amplitude * angle.cos()).float(), (amplitude * angle.sin()).float()

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, ``[T, W / 2]`` each."""
        if length > self.context_length:  # evaluation beyond the training length
            cos, sin = (table.to(device) for table in self._tables(length))
            return cos, sin
        return self.cos[:length], self.sin[:length]

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(q.shape[-2], q.device)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def chunk_tables(self, length: int) -> tuple[Tensor, Tensor]:
        return self.tables(length, self.cos.device)

    def rotate_chunk(self, q: Tensor, k: Tensor, start: int, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = (table[start : start + q.shape[-2]] for table in tables)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x, rest = exact(x), None
        if self.width < x.shape[-1]:
            x, rest = x[..., : self.width], x[..., self.width :]
        if self.pairs:
            first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
            x = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
        else:
            first, second = x.chunk(2, -1)
            x = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return x if rest is None else torch.cat((x, rest), -1)


@dataclass(eq=False, repr=False, kw_only=True)
class RoPE(Rotary):
    """``w_i = rope_theta^(-2i/W)`` (Su et al. 2021, arXiv 2104.09864, eq. 15)."""

    def spectrum(self, length: int) -> Spectrum:
        return Spectrum(self.plain_frequencies(), 1.0)


def pairs_to_halves(rows: Tensor, *, head_dim: int, width: int) -> Tensor:
    """Convert a query or key projection from ``layout=pairs`` to halves; the first `width` channels of a head are rotated.

    `rows` is the weight ``[H * head_dim, D]`` or bias ``[H * head_dim]``. Channels 0, 2, 4, ... become the first half and 1, 3, 5, ...
    the second, so that every score stays the same.
    """
    order = torch.arange(width).unflatten(0, (-1, 2)).T.flatten()
    return _reorder(rows, order, head_dim)


def halves_to_pairs(rows: Tensor, *, head_dim: int, width: int) -> Tensor:
    """Convert a projection from halves to ``layout=pairs``, the inverse of :func:`pairs_to_halves`."""
    order = torch.arange(width).unflatten(0, (2, -1)).T.flatten()
    return _reorder(rows, order, head_dim)


def _reorder(rows: Tensor, order: Tensor, head_dim: int) -> Tensor:
    order = torch.cat((order, torch.arange(len(order), head_dim)))
    return rows.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)
