"""A model that reads a text in chunks, and its KV cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.decoding.cache import LayerCache
from lmablate.decoding.chunk import Chunk
from lmablate.model.attention import Attention
from lmablate.model.posemb import AttentionContext, PosEmb
from lmablate.model.transformer import TransformerLM

_HOOKS = {
    "embed": "embed_chunk",
    "rotate": "rotate_chunk",
    "score_bias": "score_bias_at",
    "relative": "relative_at",
}


class Decoder:
    """A `model` and its cache that read `batch` texts of one length, of up to `length` tokens, in chunks.

    The contract: after any chunks, ``feed`` returns the logits of the last chunk as if the model had read the whole text so far at
    once. Positions may change as the text grows: dynamic NTK scaling changes its angles with the length, LongRoPE once. The cache is
    then invalid. Keys alone could be rotated anew (Peng et al. 2023, arXiv 2309.00071, section 3.3), but the values and keys of higher
    layers came from queries at the old angles, so the text is read again.
    """

    def __init__(self, model: TransformerLM, batch: int, length: int, *, dtype: torch.dtype | None = None) -> None:
        """Allocate the cache in `dtype` (None: that of the model's weights). The model must be in eval mode."""
        if model.training:
            raise ValueError("a model that drops out cannot generate: call model.eval() first")
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        layers.sort(key=lambda module: module.layer)
        _check(model, layers)
        weight = model.embedding.weight
        self.model, self.batch, self.length = model, batch, length
        self.spans = [module.span for module in layers]
        self.caches = [
            LayerCache(
                module.cached(),
                module.span,
                batch=batch,
                length=length,
                dtype=dtype or weight.dtype,
                device=weight.device,
            )
            for module in layers
        ]
        self.start = 0
        self.prefix: Tensor | None = None
        self._chunks: list[Tensor] = []
        self._tables: tuple[int, Any] | None = None  # (length of the text, its tables)

    @property
    def n_bytes(self) -> int:
        """Return the bytes of the cache."""
        return sum(cache.n_bytes for cache in self.caches)

    @torch.no_grad()
    def feed(self, tokens: Tensor, prefix: int | None = None) -> Tensor:
        """Read int64 ``[B, n]``, the next n tokens of every text, and return their logits ``[B, n, vocab_size]``."""
        return self.model.logits(self.advance(tokens, prefix))

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, prefix: int | None = None) -> Tensor:
        """Read the next tokens and return the logits of the last, ``[B, vocab_size]``."""
        return self.model.logits(self.advance(tokens, prefix)[:, -1])

    @torch.no_grad()
    def advance(self, tokens: Tensor, prefix: int | None = None) -> Tensor:
        """Read the next n tokens and return the head's input, ``[B, n, D]``. The first `prefix` tokens of a text, which must be in its
        first chunk, read each other in both directions."""
        batch, n = tokens.shape
        if batch != self.batch or not 0 < n <= self.length - self.start:
            raise ValueError(
                f"{batch} x {n} tokens for a decoder of {self.batch} texts, of whose {self.length} tokens {self.start} are read"
            )
        if prefix is not None:
            if self.start or prefix > n:
                raise ValueError(f"a prefix of {prefix} tokens must be within the first piece of a text")
            self.prefix = torch.full((batch,), prefix, device=tokens.device)
        posemb = self.model.posemb
        if self.start and posemb.moves(self.start, self.start + n):
            tokens = torch.cat((*self._chunks, tokens), -1)
            self.start, self._chunks = 0, []
        hidden = self._read(tokens)
        self.start += tokens.shape[-1]
        self._chunks.append(tokens)
        return hidden[:, -n:]

    def _read(self, tokens: Tensor) -> Tensor:
        n, posemb = tokens.shape[-1], self.model.posemb
        if not self.start:
            whole = Chunk(self.caches, self.spans, posemb, None, 0, n)
            return self.model.hidden(tokens, self.prefix, kv_cache=whole)
        tables = self._chunk_tables(self.start + n)
        kv_cache = Chunk(self.caches, self.spans, posemb, tables, self.start, n)
        rotate = partial(posemb.rotate_chunk, start=self.start, tables=tables)
        add_positions = partial(posemb.embed_chunk, start=self.start, tables=tables)
        return self.model.run_blocks(
            self.model.embed(tokens, add_positions), AttentionContext(rotate, None, kv_cache=kv_cache, tokens=tokens)
        )

    def _chunk_tables(self, length: int) -> Any:
        """The position embedding's tables for a text of `self.length` tokens or, if positions then differ, of `length`."""
        posemb = self.model.posemb
        if self._tables is None or length > self._tables[0] or posemb.moves(self._tables[0], length):
            long = length if posemb.moves(length, self.length) else self.length
            self._tables = (long, posemb.chunk_tables(long))
        return self._tables[1]


def _check(model: TransformerLM, layers: list[Attention]) -> None:
    """Raise ConfigError for models without left-to-right generation or with shared layers, and for user-defined parts that read whole
    texts only."""
    if model.reads_all:
        raise ConfigError(
            "an encoder reads a whole text in both directions and does not write one: generation is for models that read from left "
            "to right (objective=causal or prefix)"
        )
    if model.encoder is not None or len(set(model.order)) < len(model.order):
        what = "an encoder and a decoder" if model.encoder is not None else "layers that share their weights"
        raise ConfigError(
            f"generation keeps what one block has read once, and this model has {what}: it is not supported"
        )
    kind = type(model.posemb)
    for whole, chunk in _HOOKS.items():
        homes = [next(base for base in kind.__mro__ if hook in vars(base)) for hook in (whole, chunk)]
        if homes[0] is not PosEmb and not issubclass(homes[1], homes[0]):
            raise ConfigError(
                f"posemb: {kind.__name__} defines {whole}() and not {chunk}(), which generation needs: define it as "
                "lmablate.model.posemb.PosEmb describes it"
            )
    for module in layers:
        if type(module).cached is Attention.cached:
            raise ConfigError(
                f"attention: {type(module).__name__} does not define cached(), which generation needs: define it as "
                "lmablate.model.attention.Attention describes it"
            )
    if any(getattr(module, "reads_whole_texts", False) for module in model.modules()):
        raise ConfigError(
            "ffn: which experts a token meets hangs here on the rest of its text, or on how long that is (ffn=expert_choice, or "
            "ffn.capacity_factor), so that a text cannot be read piece by piece, as generation does: use dropless ffn=token_choice"
        )
    if len(layers) != len(model.blocks) or [module.layer for module in layers] != list(range(len(layers))):
        raise ConfigError("generation needs one attention branch in every block")
