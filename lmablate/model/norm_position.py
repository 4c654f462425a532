"""Axis ``norm_position``: how a branch joins the residual stream.

A position wraps one branch f: ``forward(x, positions)`` is the new residual stream, ``delta(x, positions)`` the branch
with the norms it owns, without the addition; both ``[..., T, D] -> [..., T, D]``. ``needs_final_norm`` says whether the
stack must end in a norm, ``norms_per_branch`` how many norms one branch brings, and ``owns_norm`` whether those norms
belong to the branch (so that two branches can stand side by side) or to the residual stream.
"""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from lmablate.model.posemb import Positions

NormFactory = Callable[[], nn.Module]


class NormPosition(nn.Module):
    """Base: ``x + delta(x)``."""

    needs_final_norm: ClassVar[bool] = True
    norms_per_branch: ClassVar[int] = 1
    owns_norm: ClassVar[bool] = True

    def delta(self, x: Tensor, positions: Positions) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define delta()")

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        return x + self.delta(x, positions)


class Pre(NormPosition):
    """``x + f(norm(x))``: the residual path stays clean (Xiong et al. 2020, arXiv 2002.04745)."""

    def __init__(self, branch: nn.Module, norm: NormFactory) -> None:
        super().__init__()
        self.norm = norm()
        self.branch = branch

    def delta(self, x: Tensor, positions: Positions) -> Tensor:
        return self.branch(self.norm(x), positions)


class Post(NormPosition):
    """``norm(x + f(x))``: the 2017 Transformer (Vaswani et al., arXiv 1706.03762, section 3.1)."""

    needs_final_norm = False
    owns_norm = False

    def __init__(self, branch: nn.Module, norm: NormFactory) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm()

    def delta(self, x: Tensor, positions: Positions) -> Tensor:
        return self.branch(x, positions)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        return self.norm(x + self.delta(x, positions))


class Sandwich(NormPosition):
    """``x + norm_out(f(norm_in(x)))``, also called double or peri norm (Ding et al. 2021, arXiv 2105.13290)."""

    norms_per_branch = 2

    def __init__(self, branch: nn.Module, norm: NormFactory) -> None:
        super().__init__()
        self.norm_in = norm()
        self.branch = branch
        self.norm_out = norm()

    def delta(self, x: Tensor, positions: Positions) -> Tensor:
        return self.norm_out(self.branch(self.norm_in(x), positions))


class Output(NormPosition):
    """``x + norm(f(x))``: the norm on the branch's output only, as in OLMo 2 (arXiv 2501.00656, section 2)."""

    def __init__(self, branch: nn.Module, norm: NormFactory) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm()

    def delta(self, x: Tensor, positions: Positions) -> Tensor:
        return self.norm(self.branch(x, positions))
