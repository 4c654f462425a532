"""Base classes of feed-forward options and their branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from lmablate.model.posemb import AttentionContext

Pointwise = Callable[..., Tensor]


class FFNShape(NamedTuple):
    """The factory's arguments: `d_ff` is the width of a dense network; `new_fn` builds the activation of one layer."""

    d_model: int
    d_ff: int
    gated: bool
    bias: bool
    dropout: float
    context_length: int
    new_fn: Callable[[], Pointwise]


class FeedForward(nn.Module):
    """Base class of the branches: ``[..., T, D] -> [..., T, D]``, with ``out_proj`` as last matrix. ``reads_whole_texts``: the experts
    of a token depend on the rest of its text or its length, so a text cannot be read in chunks."""

    out_proj: nn.Module
    reads_whole_texts: bool = False

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        raise NotImplementedError


class FFNOption:
    """An option of the axis, built from its YAML file: it builds the branch of a layer and states its cost. ``is_dense`` marks the
    plain network."""

    is_dense: ClassVar[bool] = False

    def branch(self, shape: FFNShape, *, layer: int) -> FeedForward:
        raise NotImplementedError

    def check(self, n_layers: int, *, reads_all: bool) -> None:
        """Raise ConfigError for settings without meaning in a model of `n_layers` layers; `reads_all`: tokens read the whole text."""

    def matmul_params(self, shape: FFNShape, *, layer: int) -> float:
        """Return the multiply-adds of a layer's matrices per token, without the experts it does not use."""
        raise NotImplementedError

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        """Return the parameter count of a layer."""
        raise NotImplementedError

    def n_idle(self, shape: FFNShape, *, layer: int, tokens: int = 1) -> int:
        """Return the mean number of parameters that none of `tokens` tokens uses, if all experts are used equally often."""
        return 0
