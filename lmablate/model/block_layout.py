"""Axis ``block_layout``: the branches of a block, in sequence or in parallel.

A layout is built as ``Layout(attention, ffn, place)``, where ``place(branch)`` wraps a branch in the chosen norm position. It maps the
residual stream ``[..., T, D] -> [..., T, D]``. ``n_branches`` counts the wrapped branches. With ``in_turn`` true, cross attention, if
any, follows attention as a branch of its own; otherwise it reads attention's input, and both are added.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from lmablate.core.errors import ConfigError
from lmablate.model.norm_position import NormPosition
from lmablate.model.posemb import AttentionContext

Place = Callable[[nn.Module], Any]


class InTurn(nn.Module):
    """Two placed branches in sequence: the second reads the stream after the first has been added."""

    def __init__(self, first: NormPosition, second: NormPosition) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.second(self.first(x, positions), positions)


class Sum(nn.Module):
    """Two branches that read the same input and whose outputs are added."""

    def __init__(self, attention: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = ffn

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.attention(x, positions).to(x.dtype) + self.ffn(x, positions).to(x.dtype)


class Serial(nn.Module):
    """Attention joins the stream, then the FFN reads the result (Vaswani et al. 2017)."""

    n_branches: ClassVar[int] = 2
    in_turn: ClassVar[bool] = True

    def __init__(self, attention: nn.Module, ffn: nn.Module, place: Place) -> None:
        super().__init__()
        self.attention = place(attention)
        self.ffn = place(ffn)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.ffn(self.attention(x, positions), positions)


class Parallel(nn.Module):
    """``x + attn(norm(x)) + ffn(norm(x))`` with one norm for both (GPT-J; PaLM, arXiv 2204.02311, section 2)."""

    n_branches: ClassVar[int] = 1

    def __init__(self, attention: nn.Module, ffn: nn.Module, place: Place) -> None:
        super().__init__()
        self.both = place(Sum(attention, ffn))

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.both(x, positions)


class Parallel2(nn.Module):
    """``x + attn(norm_a(x)) + ffn(norm_f(x))`` with a norm for each (GPT-NeoX, arXiv 2204.06745, section 2.1)."""

    n_branches: ClassVar[int] = 2

    def __init__(self, attention: nn.Module, ffn: nn.Module, place: Place) -> None:
        super().__init__()
        self.attention = place(attention)
        self.ffn = place(ffn)
        if not self.attention.owns_norm:
            raise ConfigError(
                "block_layout=parallel2 gives each branch a norm of its own, but norm_position=post and deepnorm have one norm on the sum: "
                "use block_layout=parallel, or norm_position=pre, sandwich or output"
            )

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return x + self.attention.delta(x, positions) + self.ffn.delta(x, positions)
