"""Rotary positions: queries and keys are turned by an angle that grows with their position."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.base import PosEmb, PositionShape
from lmablate.model.types import PositiveFloat

RotaryFraction = Annotated[float, Field(gt=0, lt=1)]  # of the channels of a head; None stands for all of them
Layout = Literal["pairs"]  # None stands for halves


class Spectrum(NamedTuple):
    """`frequencies`: float64 ``[W / 2]``, radians a position; `amplitude`: what the rotated channels are multiplied by."""

    frequencies: Tensor
    amplitude: float


@dataclass(eq=False, repr=False, kw_only=True)
class Rotary(PosEmb):
    """Base of the rotary options: turns channel pairs of q and k by ``t * w_i``, so that ``q_t . k_s`` depends on
    ``t - s`` only (Su et al. 2021, arXiv 2104.09864, eq. 34).

    `rotary_fraction` of the channels of a head, the first ones, are turned (None: all; GPT-J 0.25, Pythia 0.25). Of these
    W channels, pair i is ``(x_i, x_{i + W/2})``, as in Llama, or with ``layout=pairs`` ``(x_2i, x_{2i+1})``, as in the
    paper and GPT-J: one model up to the order of the rows of ``q_proj`` and ``k_proj`` (:func:`pairs_to_halves`).

    An option is a dataclass: its fields are the keys of its YAML, and `check` refuses numbers that cannot meet.
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
        """Raise ConfigError for numbers that cannot meet."""

    def spectrum(self, length: int) -> Spectrum:
        """The angles for a text of `length` tokens."""
        raise NotImplementedError

    def plain_frequencies(self) -> Tensor:
        """``w_i = rope_theta^(-2i/W)``, float64 ``[W / 2]``."""
        return self.rope_theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64, device="cpu") / self.width)

    def fill(self) -> None:
        """Make the tables of the training length."""
        cos, sin = self._tables(self.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        frequencies, amplitude = self.spectrum(length)
        where = torch.empty(0).device  # that the model is being built on
        if where.type == "meta":  # torch would load its compiler, for more than a second, to compute nothing
            return torch.empty(length, len(frequencies)), torch.empty(length, len(frequencies))
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequencies.to(where)
        return (amplitude * angle.cos()).float(), (amplitude * angle.sin()).float()

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines, ``[T, W / 2]`` each."""
        if length > self.context_length:  # evaluation beyond the training length
            cos, sin = (table.to(device) for table in self._tables(length))
            return cos, sin
        return self.cos[:length], self.sin[:length]

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(q.shape[-2], q.device)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def for_pieces(self, length: int) -> tuple[Tensor, Tensor]:
        return self.tables(length, self.cos.device)

    def rotate_piece(self, q: Tensor, k: Tensor, start: int, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = (table[start : start + q.shape[-2]] for table in made)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rest = None
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
    """The weight ``[H * head_dim, D]`` (or bias ``[H * head_dim]``) of a query or key projection made for
    ``layout=pairs``, for the halves layout; `width` channels of a head, its first ones, are turned.

    Channels 0, 2, 4, ... become the first half and 1, 3, 5, ... the second, so that every score stays what it was.
    """
    order = torch.arange(width).unflatten(0, (-1, 2)).T.flatten()
    return _reorder(rows, order, head_dim)


def halves_to_pairs(rows: Tensor, *, head_dim: int, width: int) -> Tensor:
    """The inverse of :func:`pairs_to_halves`."""
    order = torch.arange(width).unflatten(0, (2, -1)).T.flatten()
    return _reorder(rows, order, head_dim)


def _reorder(rows: Tensor, order: Tensor, head_dim: int) -> Tensor:
    order = torch.cat((order, torch.arange(len(order), head_dim)))
    return rows.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)
