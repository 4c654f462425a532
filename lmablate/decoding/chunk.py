"""One chunk of a text on its way through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmablate.decoding.cache import LayerCache
from lmablate.model.attention import AttentionSpan
from lmablate.model.posemb import AttentionContext, CachedKV, PosEmb


class Chunk:
    """The ``positions.kv_cache`` of the n tokens from position `start` on; layers of equal span share masks and biases."""

    def __init__(
        self,
        caches: Sequence[LayerCache],
        spans: Sequence[AttentionSpan],
        posemb: PosEmb,
        tables: Any,
        start: int,
        n: int,
    ) -> None:
        self.caches, self.spans, self.posemb, self.tables = caches, spans, posemb, tables
        self.start, self.end = start, start + n
        self._known: dict[AttentionSpan, tuple[Tensor | None, AttentionContext]] = {}

    def __call__(self, layer: int, new: tuple[Tensor, ...]) -> CachedKV | None:
        cache = self.caches[layer]
        if not self.start:
            cache.write(0, new)
            return None
        cached = cache.extend(self.start, new)
        span = self.spans[layer]
        if span not in self._known:
            self._known[span] = self._read(cache, span, new[0].device)
        return CachedKV(cached, *self._known[span])

    def _read(
        self, cache: LayerCache, span: AttentionSpan, device: torch.device
    ) -> tuple[Tensor | None, AttentionContext]:
        key_positions = cache.positions(self.start, self.end, device)
        distance = torch.arange(self.start, self.end, device=device)[:, None] - key_positions

        def relative(q: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
            return self.posemb.relative_at(q, layer, distance, self.tables)

        positions = AttentionContext(_turned_before, self.posemb.score_bias_at(distance), relative)
        if self.end - self.start == 1 and span.stride is None:
            return None, positions  # one token reads the whole cache
        read = distance >= 0
        if span.window is not None:
            read = read & (distance < span.window)
        if span.stride is not None:
            read = read & (distance % span.stride == 0)
        return read, positions


def _turned_before(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    raise TypeError("the queries and keys of a piece are turned once, before they are kept")
