"""Bidirectional stacks next to the model's own: an encoder, and a generator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lmablate.model.posemb import AttentionContext, PosEmb
from lmablate.model.primitives import Embedding, Head, Linear


class Reader(nn.Module):
    """Blocks in which every token reads every other: ``[..., B, T, D] -> [..., B, T, D]``; layer i runs block ``order[i]``."""

    def __init__(
        self, *, posemb: PosEmb, blocks: Sequence[nn.Module], order: Sequence[int], final_norm: nn.Module
    ) -> None:
        super().__init__()
        self.posemb = posemb
        self.blocks = nn.ModuleList(blocks)
        self.order = tuple(order)
        self.final_norm = final_norm

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map embedded `tokens` ``[..., B, T]``, `x`, to their states."""
        bias = self.posemb.score_bias(x.shape[-2])
        positions = AttentionContext(self.posemb.rotate, bias, self.posemb.relative, True, tokens=tokens)
        for i in self.order:
            x = self.blocks[i](x, positions)
        return self.final_norm(x)


class Encoder(nn.Module):
    """The first of two stacks, with its own positions, on the token rows of the model."""

    def __init__(self, *, reader: Reader, embedding_norm: nn.Module | None, dropout: float) -> None:
        super().__init__()
        self.reader = reader
        self.embedding_norm = embedding_norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Map the rows of `tokens`, ``[..., B, S, D]``, to states ``[..., B, S, D]``."""
        x = self.reader.posemb.embed(rows)
        return self.reader(self.dropout(x if self.embedding_norm is None else self.embedding_norm(x)), tokens)


class Generator(nn.Module):
    """A small masked model on the embedded tokens of a larger one, with shared token and position tables (ELECTRA, Clark et al. 2020,
    arXiv 2003.10555, section 3.2)."""

    def __init__(
        self, *, embedding_map: Linear | None, reader: Reader, readout: nn.Module, head: Head, logit_scale: float | None
    ) -> None:
        super().__init__()
        self.embedding_map = embedding_map
        self.reader = reader
        self.readout = readout
        self.head = head
        self.logit_scale = logit_scale

    def forward(self, x: Tensor, tokens: Tensor, table: Embedding, at: Tensor) -> Tensor:
        """Map embedded `tokens`, ``[..., T, E]``, to the logits at positions `at` ``[..., n]``: ``[..., n, vocab_size]``."""
        x = self.reader(x if self.embedding_map is None else self.embedding_map(x).to(x.dtype), tokens)
        x = x.gather(-2, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))
        x = x if self.logit_scale is None else x * self.logit_scale
        return self.head(self.readout(x), table)
