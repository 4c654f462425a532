"""The one model: embed, blocks, final norm, head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmablate.model.posemb import PosEmb, Positions
from lmablate.model.primitives import Embedding, Head

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


class TransformerLM(nn.Module):
    """A decoder-only language model: int64 tokens ``[..., B, T]`` to logits ``[..., B, T, vocab_size]``.

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

    def hidden(self, tokens: Tensor) -> Tensor:
        """The residual stream after the final norm, ``[..., B, T, D]``, times `logit_scale`: what the head reads."""
        x = self.dropout(self.embed(tokens))
        positions = Positions(self.posemb.rotate, self.posemb.score_bias(tokens.shape[-1]), self.posemb.relative)
        for block in self.blocks:
            x = block(x, positions)
        x = self.final_norm(x)
        return x if self.logit_scale is None else x * self.logit_scale

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., B, T] -> [..., B, T, D]``: token rows times `embedding_scale`, positions added, then `embedding_norm`."""
        x = self.embedding(tokens)
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        x = self.posemb.embed(x)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocab_size]``, capped as in Gemma 2 (arXiv 2408.00118, section 2) where that is on."""
        logits = self.head(hidden, self.embedding)
        if self.final_soft_cap is not None:
            logits = self.final_soft_cap * torch.tanh(logits / self.final_soft_cap)
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens))
