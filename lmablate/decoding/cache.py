"""What one layer keeps of the tokens it has read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmablate.model.attention import AttentionSpan


class LayerCache:
    """Tensors ``[B, H, slots, width]``, one of each of `shapes` (heads, width), for a text of up to `length` tokens.

    A layer with a window keeps as many tokens as it is wide, and the token at position p goes into slot ``p mod slots``. A
    strided layer keeps all, since its queries take turns at reading them.
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
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, start: int, new: Sequence[Tensor]) -> None:
        """Keep the tokens of a piece ``[B, H, n, width]`` that stands at position `start`: the last `slots` of them."""
        n = new[0].shape[-2]
        kept = min(n, self.slots)
        first = (start + n - kept) % self.slots
        for tensor, piece in zip(self.tensors, new, strict=True):
            before_the_end = min(kept, self.slots - first)
            tail = piece[..., n - kept :, :]
            tensor[..., first : first + before_the_end, :] = tail[..., :before_the_end, :]
            tensor[..., : kept - before_the_end, :] = tail[..., before_the_end:, :]

    def extend(self, start: int, new: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Keep a piece, and give all that its queries may read, in the order of `places`: views of the cache, unless the piece
        is longer than one token and pushes tokens out that its own first queries still read."""
        end = start + new[0].shape[-2]
        if self._pushes_out(start, end):
            earlier = torch.arange(max(0, start - self.slots), start, device=new[0].device) % self.slots
            joined = tuple(
                torch.cat((tensor[..., earlier, :], piece.to(tensor.dtype)), -2)
                for tensor, piece in zip(self.tensors, new, strict=True)
            )
            self.write(start, new)
            return joined
        self.write(start, new)
        return tuple(tensor[..., : min(end, self.slots), :] for tensor in self.tensors)

    def places(self, start: int, end: int, device: torch.device) -> Tensor:
        """The positions of what `extend` gives for a piece from `start` to `end`, int64 ``[K]``."""
        if self._pushes_out(start, end):
            return torch.arange(max(0, start - self.slots), end, device=device)
        slot = torch.arange(min(end, self.slots), device=device)
        return end - 1 - (end - 1 - slot) % self.slots

    def _pushes_out(self, start: int, end: int) -> bool:
        return end > self.slots and end - start > 1
