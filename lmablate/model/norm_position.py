"""Axis ``norm_position``: how a branch joins the residual stream.

A position is built as ``Position(branch, norm, n_layers, **yaml)``, n_layers being the depth of the model, and wraps one branch f.
``forward(x, positions)`` is the new residual stream, ``delta(x, positions)`` the branch with its own norms, without the addition; both
``[..., T, D] -> [..., T, D]``. ``needs_final_norm``: the stack ends in a norm unless model.final_norm overrides it.
``norms_per_branch``: the number of norms of one branch. ``owns_norm``: these norms belong to the branch, so that two branches can run
in parallel, and not to the residual stream. A branch works in its compute dtype (primitives.py), and ``delta`` has the stream's.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lmablate.model.posemb import AttentionContext

NormFactory = Callable[[], nn.Module]


class NormPosition(nn.Module):
    """Base class: ``x + delta(x)``."""

    needs_final_norm: ClassVar[bool] = True
    norms_per_branch: ClassVar[int] = 1
    owns_norm: ClassVar[bool] = True

    @staticmethod
    def branch_gain(n_layers: int, settings: Mapping[str, Any]) -> float | None:
        """Return the gain of the Xavier draws of a branch's matrices (init.py); None: the model group decides."""
        return None

    def delta(self, x: Tensor, positions: AttentionContext) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define delta()")

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return x + self.delta(x, positions)


class Pre(NormPosition):
    """``x + f(norm(x))``: the residual path stays clean (Xiong et al. 2020, arXiv 2002.04745)."""

    def __init__(self, branch: nn.Module, norm: NormFactory, n_layers: int) -> None:
        super().__init__()
        self.norm = norm()
        self.branch = branch

    def delta(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.branch(self.norm(x), positions).to(x.dtype)


class Post(NormPosition):
    """``norm(x + f(x))``: the 2017 Transformer (Vaswani et al., arXiv 1706.03762, section 3.1)."""

    needs_final_norm = False
    owns_norm = False

    def __init__(self, branch: nn.Module, norm: NormFactory, n_layers: int) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm()

    def delta(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.branch(x, positions).to(x.dtype)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.norm(x + self.delta(x, positions))


class DeepNorm(Post):
    """``norm(alpha x + f(x))`` with the matrices of f drawn smaller by beta (Wang et al. 2022, arXiv 2203.00555, figure 2).

    `rule` sets both from the depth L. ``deepnet``, the paper's for decoders: ``alpha = (2 L)^(1/4)``, ``beta = (8 L)^(-1/4)``. ``glm``,
    that of GLM-130B (arXiv 2210.02414, section 2.1): ``alpha = (2 L)^(1/2)``, ``beta = (2 L)^(-1/2)``. The paper's rule is the same for
    a sole encoder and another one for encoder-decoders (``one_stack``).
    """

    one_stack: ClassVar[bool] = True

    def __init__(self, branch: nn.Module, norm: NormFactory, n_layers: int, *, rule: Literal["deepnet", "glm"]) -> None:
        super().__init__(branch, norm, n_layers)
        self.alpha = (2 * n_layers) ** (0.25 if rule == "deepnet" else 0.5)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.norm(self.alpha * x + self.delta(x, positions))

    @staticmethod
    def branch_gain(n_layers: int, settings: Mapping[str, Any]) -> float:
        return (8 * n_layers) ** -0.25 if settings["rule"] == "deepnet" else (2 * n_layers) ** -0.5


class Sandwich(NormPosition):
    """``x + norm_out(f(norm_in(x)))``, also called double or peri norm (Ding et al. 2021, arXiv 2105.13290)."""

    norms_per_branch = 2

    def __init__(self, branch: nn.Module, norm: NormFactory, n_layers: int) -> None:
        super().__init__()
        self.norm_in = norm()
        self.branch = branch
        self.norm_out = norm()

    def delta(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.norm_out(self.branch(self.norm_in(x), positions).to(x.dtype))


class Output(NormPosition):
    """``x + norm(f(x))``: the norm on the branch's output only, as in OLMo 2 (arXiv 2501.00656, section 2)."""

    def __init__(self, branch: nn.Module, norm: NormFactory, n_layers: int) -> None:
        super().__init__()
        self.branch = branch
        self.norm = norm()

    def delta(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return self.norm(self.branch(x, positions).to(x.dtype))
