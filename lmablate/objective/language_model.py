"""The protocol of a model for an objective; TransformerLM of lmablate/model implements it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class LanguageModel(Protocol):
    """A model whose head can be called separately: ``logits(hidden(tokens))``; shapes as in TransformerLM."""

    embedding: Any
    head: Any
    final_soft_cap: float | None

    def __call__(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor: ...

    def hidden(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...

    def generator_logits(self, tokens: Tensor, at: Tensor) -> Tensor: ...
