"""What every feed-forward option is, and what its branches are built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from lmablate.model.posemb import Positions

Pointwise = Callable[..., Tensor]


class FFNShape(NamedTuple):
    """What the factory gives: `d_ff` is the width of a dense network, `new_fn` makes the activation of one layer."""

    d_model: int
    d_ff: int
    gated: bool
    bias: bool
    dropout: float
    context_length: int
    new_fn: Callable[[], Pointwise]


class FeedForward(nn.Module):
    """Base of the branches: ``[..., T, D] -> [..., T, D]``, and its last matrix is ``out_proj``.

    ``reads_whole_texts`` says that what a token meets hangs on the rest of its text, or on how long that is, so that no text can
    be read piece by piece.
    """

    out_proj: nn.Module
    reads_whole_texts: bool = False

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        raise NotImplementedError


class FFNOption:
    """An option of the axis, made from its YAML file: it builds the branch of a layer and says what that costs.

    ``is_dense`` marks the plain network.
    """

    is_dense: ClassVar[bool] = False

    def branch(self, shape: FFNShape, *, layer: int) -> FeedForward:
        raise NotImplementedError

    def check(self, n_layers: int, *, reads_all: bool) -> None:
        """Raise ConfigError for settings that mean nothing in a model of so many layers, whose tokens read all of a text or not."""

    def weights_per_token(self, shape: FFNShape, *, layer: int) -> float:
        """Multiply-adds of a layer's matrices with a token, those of experts that a token does not meet left out."""
        raise NotImplementedError

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        """Learned numbers of a layer."""
        raise NotImplementedError

    def n_idle(self, shape: FFNShape, *, layer: int, tokens: int = 1) -> int:
        """Those of them that none of so many tokens meets, on average, where experts are met equally often."""
        return 0
