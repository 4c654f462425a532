"""The one model: embed, blocks, final norm, head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmablate.model.posemb import PosEmb, Positions
from lmablate.model.primitives import Embedding, Head


class TransformerLM(nn.Module):
    """A decoder-only language model: int64 tokens ``[..., B, T]`` to logits ``[..., B, T, vocab_size]``."""

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
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.posemb = posemb
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.head = head
        self.final_soft_cap = final_soft_cap

    def hidden(self, tokens: Tensor) -> Tensor:
        """The residual stream after the final norm, ``[..., B, T, D]``: what the head reads."""
        x = self.dropout(self.posemb.embed(self.embedding(tokens)))
        positions = Positions(self.posemb.rotate, self.posemb.score_bias(tokens.shape[-1]))
        for block in self.blocks:
            x = block(x, positions)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., vocab_size]``, capped as in Gemma 2 (arXiv 2408.00118, section 2) where that is on."""
        logits = self.head(hidden, self.embedding)
        if self.final_soft_cap is not None:
            logits = self.final_soft_cap * torch.tanh(logits / self.final_soft_cap)
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens))
