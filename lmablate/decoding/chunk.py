"""One piece of a text on its way through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmablate.decoding.cache import LayerCache
from lmablate.model.attention import Reach
from lmablate.model.posemb import Earlier, PosEmb, Positions


class Piece:
    """``positions.past`` for the n tokens from position `start` on: layers of one reach share masks and biases."""

    def __init__(
        self, caches: Sequence[LayerCache], reaches: Sequence[Reach], posemb: PosEmb, made: Any, start: int, n: int
    ) -> None:
        self.caches, self.reaches, self.posemb, self.made = caches, reaches, posemb, made
        self.start, self.end = start, start + n
        self._known: dict[Reach, tuple[Tensor | None, Positions]] = {}

    def __call__(self, layer: int, new: tuple[Tensor, ...]) -> Earlier | None:
        cache = self.caches[layer]
        if not self.start:
            cache.write(0, new)
            return None
        kept = cache.extend(self.start, new)
        reach = self.reaches[layer]
        if reach not in self._known:
            self._known[reach] = self._read(cache, reach, new[0].device)
        return Earlier(kept, *self._known[reach])

    def _read(self, cache: LayerCache, reach: Reach, device: torch.device) -> tuple[Tensor | None, Positions]:
        places = cache.places(self.start, self.end, device)
        distance = torch.arange(self.start, self.end, device=device)[:, None] - places

        def relative(q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
            return self.posemb.relative_at(q, layer, distance, self.made)

        positions = Positions(_turned_before, self.posemb.score_bias_at(distance), relative)
        if self.end - self.start == 1 and reach.stride is None:
            return None, positions  # one token reads all that is kept for it
        read = distance >= 0
        if reach.window is not None:
            read = read & (distance < reach.window)
        if reach.stride is not None:
            read = read & (distance % reach.stride == 0)
        return read, positions


def _turned_before(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    raise TypeError("the queries and keys of a piece are turned once, before they are kept")
