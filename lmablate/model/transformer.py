"""The one model: embed, blocks, final norm, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmablate.model.attention.scores import with_prefix
from lmablate.model.posemb import Past, PosEmb, Positions
from lmablate.model.primitives import Embedding, Head

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


class TransformerLM(nn.Module):
    """A decoder-only language model: int64 tokens ``[..., B, T]`` to logits ``[..., B, T, vocab_size]``.

    A token reads what came before it. The first `prefix` tokens of a text, int64 ``[..., B]``, read one another in both
    directions too.

    `config` is what build_model made it from; nothing in the model reads it.
    """

    config: RunConfig | None = None

    def __init__(
        self,
        *,
        embedding: Embedding,
        posemb: PosEmb,
        blocks: Sequence[nn.Module],
        final_norm: nn.Module,
        head: Head,
        dropout: float,
        final_soft_cap: float | None,
        embedding_scale: float | None,
        embedding_norm: nn.Module | None,
        logit_scale: float | None,
        readout: nn.Module | None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.posemb = posemb
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.head = head
        self.final_soft_cap = final_soft_cap
        self.embedding_scale = embedding_scale
        self.embedding_norm = embedding_norm
        self.logit_scale = logit_scale
        self.readout = readout

    def hidden(self, tokens: Tensor, prefix: Tensor | None = None, *, past: Past | None = None) -> Tensor:
        """The residual stream after the final norm, ``[..., B, T, D]``, times `logit_scale`, or what a `readout` makes of
        it: what the head reads. `past` as in `Positions`."""
        length = tokens.shape[-1]
        may_read = None if prefix is None else with_prefix(length, prefix)
        positions = Positions(self.posemb.rotate, self.posemb.score_bias(length), self.posemb.relative, may_read, past)
        x = self.through(self.dropout(self.embed(tokens)), positions)
        return x if self.readout is None else self.readout(x)

    def through(self, x: Tensor, positions: Positions) -> Tensor:
        """The blocks and what stands after them: ``[..., B, T, D] -> [..., B, T, D]``."""
        for block in self.blocks:
            x = block(x, positions)
        x = self.final_norm(x)
        return x if self.logit_scale is None else x * self.logit_scale

    def embed(self, tokens: Tensor, place: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """``[..., B, T] -> [..., B, T, D]``: token rows times `embedding_scale`, positions added, then `embedding_norm`. `place`
        adds the positions of a text that does not start here."""
        x = self.embedding(tokens)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        x = self.posemb.embed(x) if place is None else place(x)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocab_size]``, capped as in Gemma 2 (arXiv 2408.00118, section 2) where that is on."""
        logits = self.head(hidden, self.embedding)
        if self.final_soft_cap is not None:
            logits = self.final_soft_cap * torch.tanh(logits / self.final_soft_cap)
        return logits

    def forward(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(tokens, prefix))
