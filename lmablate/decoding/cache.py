"""The KV cache of one layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmablate.model.attention import AttentionSpan


class LayerCache:
    """Tensors ``[B, H, slots, width]``, one per entry of `shapes` (heads, width), for a text of up to `length` tokens.

    A layer with a window caches as many tokens as it is wide; the token at position p goes into slot ``p mod slots``. A strided layer
    caches all, since its queries read them in turns.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        span: AttentionSpan,
        *,
        batch: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.slots = length if span.window is None else min(span.window, length)
        self.tensors = [
            torch.zeros(batch, heads, self.slots, width, dtype=dtype, device=device) for heads, width in shapes
        ]

    @property
    def n_bytes(self) -> int:
        """Return the bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, start: int, new: Sequence[Tensor]) -> None:
        """Store the last `slots` tokens of a chunk ``[B, H, n, width]`` that starts at position `start`."""
        n = new[0].shape[-2]
        stored = min(n, self.slots)
        first = (start + n - stored) % self.slots
        for tensor, chunk in zip(self.tensors, new, strict=True):
            before_the_end = min(stored, self.slots - first)
            tail = chunk[..., n - stored :, :]
            tensor[..., first : first + before_the_end, :] = tail[..., :before_the_end, :]
            tensor[..., : stored - before_the_end, :] = tail[..., before_the_end:, :]

    def extend(self, start: int, new: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Store a chunk and return all that its queries may read, in the order of `positions`. The result is a view of the cache,
        unless the chunk has several tokens and overwrites ones that its own first queries read."""
        end = start + new[0].shape[-2]
        if self._pushes_out(start, end):
            earlier = torch.arange(max(0, start - self.slots), start, device=new[0].device) % self.slots
            joined = tuple(
                torch.cat((tensor[..., earlier, :], chunk.to(tensor.dtype)), -2)
                for tensor, chunk in zip(self.tensors, new, strict=True)
            )
            self.write(start, new)
            return joined
        self.write(start, new)
        return tuple(tensor[..., : min(end, self.slots), :] for tensor in self.tensors)

    def positions(self, start: int, end: int, device: torch.device) -> Tensor:
        """Return the positions of the result of `extend` for a chunk from `start` to `end`, int64 ``[K]``."""
        if self._pushes_out(start, end):
            return torch.arange(max(0, start - self.slots), end, device=device)
        slot = torch.arange(min(end, self.slots), device=device)
        return end - 1 - (end - 1 - slot) % self.slots

    def _pushes_out(self, start: int, end: int) -> bool:
        return end > self.slots and end - start > 1
