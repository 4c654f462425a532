"""The model: embedding, blocks, final norm and head, optionally after an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmablate.model.attention.scores import MayRead, with_prefix
from lmablate.model.encoder import Encoder, Generator
from lmablate.model.output_heads import Detector
from lmablate.model.posemb import AttentionContext, KVCache, PosEmb
from lmablate.model.primitives import Embedding, Head, Linear

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


class TransformerLM(nn.Module):
    """A language model: int64 tokens ``[..., B, T]`` to logits ``[..., B, T, vocab_size]``.

    A token reads the tokens before it. The first `prefix` tokens of a text, int64 ``[..., B]``, also read each other in both
    directions. With `reads_all` every token reads every other, whatever the prefix: an encoder. Layer i runs block ``order[i]``.
    `segments` is a table of text kinds, of which every text here is the first. `embedding_map` maps token rows to the width of the
    stack. A `generator` belongs to the objective that trains it too.

    With an `encoder`, it reads the first `source_length` tokens of a text. The others read each other left to right, and the encoder's
    states through cross attention. Hidden states and logits are then of these others alone, ``[..., B, T - source_length, ...]``. Both
    stacks share one token table.

    `config` is the configuration build_model used; nothing in the model reads it.
    """

    config: RunConfig | None = None

    def __init__(
        self,
        *,
        embedding: Embedding,
        posemb: PosEmb,
        blocks: Sequence[nn.Module],
        final_norm: nn.Module,
        head: Head | Detector,
        dropout: float,
        final_soft_cap: float | None,
        embedding_scale: float | None,
        embedding_norm: nn.Module | None,
        logit_scale: float | None,
        readout: nn.Module | None,
        reads_all: bool,
        order: Sequence[int],
        segments: Embedding | None,
        embedding_map: Linear | None,
        generator: Generator | None,
        encoder: Encoder | None,
        source_length: int | None,
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
        self.reads_all = reads_all
        self.order = tuple(order)
        self.segments = segments
        self.embedding_map = embedding_map
        self.generator = generator
        self.encoder = encoder
        self.source_length = source_length

    def hidden(self, tokens: Tensor, prefix: Tensor | None = None, *, kv_cache: KVCache | None = None) -> Tensor:
        """Return the head's input: the residual stream after the final norm, ``[..., B, T, D]``, times `logit_scale`, or the output of
        `readout`. `kv_cache` as in `AttentionContext`."""
        if self.encoder is not None:
            return self.hidden_of_pair(tokens[..., : self.source_length], tokens[..., self.source_length :])
        length = tokens.shape[-1]
        may_read: MayRead = True
        if not self.reads_all:
            may_read = None if prefix is None else with_prefix(length, prefix)
        positions = AttentionContext(
            self.posemb.rotate, self.posemb.score_bias(length), self.posemb.relative, may_read, kv_cache
        )
        positions = positions._replace(tokens=tokens)
        x = self.run_blocks(self.dropout(self.embed(tokens)), positions)
        return x if self.readout is None else self.readout(x)

    def hidden_of_pair(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the head's input for the decoder's tokens `target`, given the encoder's, `source`, each of any length."""
        assert self.encoder is not None
        states = self.encoder(self.rows(source), source)
        bias = self.posemb.score_bias(target.shape[-1])
        positions = AttentionContext(self.posemb.rotate, bias, self.posemb.relative, source=states, tokens=target)
        x = self.run_blocks(self.dropout(self.embed(target)), positions)
        return x if self.readout is None else self.readout(x)

    def all_blocks(self) -> list[nn.Module]:
        """Return the blocks of every stack."""
        readers = [each.reader for each in (self.encoder, self.generator) if each is not None]
        return [*self.blocks, *(block for reader in readers for block in reader.blocks)]

    def generator_logits(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Return the generator's logits at positions `at` ``[..., n]`` of a text ``[..., T]``: ``[..., n, vocab_size]``."""
        assert self.generator is not None
        logits = self.generator(self.dropout(self.embedded(tokens)), tokens, self.embedding, at)
        return self.soft_capped(logits)

    def run_blocks(self, x: Tensor, positions: AttentionContext) -> Tensor:
        """Apply the blocks, the final norm and `logit_scale`: ``[..., B, T, D] -> [..., B, T, D]``."""
        for i in self.order:
            x = self.blocks[i](x, positions)
        x = self.final_norm(x)
        return x if self.logit_scale is None else x * self.logit_scale

    def embed(self, tokens: Tensor, add_positions: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return `embedded`, mapped to the width of the stack: ``[..., B, T] -> [..., B, T, D]``."""
        x = self.embedded(tokens, add_positions)
        return x if self.embedding_map is None else self.embedding_map(x).to(x.dtype)

    def embedded(self, tokens: Tensor, add_positions: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return scaled token rows plus positions and segment, then `embedding_norm`: ``[..., B, T] -> [..., B, T, E]``.
        `add_positions` adds the positions of a chunk that does not start the text."""
        x = self.rows(tokens)
        x = self.posemb.embed(x) if add_positions is None else add_positions(x)
        if self.segments is not None:
            x = x + self.segments.shared(torch.zeros(1, dtype=torch.long, device=tokens.device))
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of the token table, times `embedding_scale`."""
        x = self.embedding(tokens)
        return x if self.embedding_scale is None else x * self.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits ``[..., D] -> [..., vocab_size]``, soft-capped as in Gemma 2 (arXiv 2408.00118, section 2) if that is on."""
        return self.soft_capped(self.head(hidden, self.embedding))

    def soft_capped(self, logits: Tensor) -> Tensor:
        if self.final_soft_cap is None:
            return logits
        return self.final_soft_cap * torch.tanh(logits / self.final_soft_cap)

    def forward(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        return self.logits(self.hidden(tokens, prefix))
