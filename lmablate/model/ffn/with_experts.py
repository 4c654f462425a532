"""The base class of options with experts: widths, dense layers, and costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lmablate.core.errors import ConfigError
from lmablate.model.ffn.base import FeedForward, FFNOption, FFNShape
from lmablate.model.ffn.dense import Dense, network, network_params

Positive = Annotated[int, Field(gt=0)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
STEPS = (8, 4, 2, 1)


def expert_width(d_ff: int, ratio: float) -> int:
    """Return ``ratio * d_ff`` if that is whole, else a multiple of 8, or of 4, 2 or 1 if that misses it by more than 1 %."""
    wanted = ratio * d_ff
    if round(wanted) > 0 and abs(wanted - round(wanted)) < 1e-6 * wanted:
        return round(wanted)
    near = (max(step, step * round(wanted / step)) for step in STEPS)
    return next((width for width in near if abs(width - wanted) <= 0.01 * wanted), max(1, round(wanted)))


class WithExperts(FFNOption):
    """Base class: E networks of ``expert_ratio * d_ff`` channels, `shared` more for every token, and `first_dense` layers without
    experts. By default the active experts together have the width of one dense network."""

    active: float  # mean number of routed experts per token

    def __init__(
        self,
        *,
        n_experts: int,
        expert_ratio: float | None,
        shared: int | None,
        shared_gate: bool | None,
        first_dense: int | None,
    ) -> None:
        if shared_gate and not shared:
            raise ConfigError("ffn.shared_gate=true gates the shared experts, and there are none: set ffn.shared")
        self.n_experts, self.expert_ratio = n_experts, expert_ratio
        self.shared, self.shared_gate, self.first_dense = shared or 0, bool(shared_gate), first_dense or 0

    def check(self, n_layers: int, *, reads_all: bool) -> None:
        if self.first_dense >= n_layers:
            raise ConfigError(
                f"ffn.first_dense={self.first_dense} leaves no layer of experts in model.n_layers={n_layers}: give less, "
                "or use ffn=dense"
            )

    def width(self, shape: FFNShape) -> int:
        """Return the width of one routed expert."""
        ratio = self.expert_ratio
        return expert_width(shape.d_ff, 1 / (self.active + self.shared) if ratio is None else ratio)

    def branch(self, shape: FFNShape, *, layer: int) -> FeedForward:
        return Dense().branch(shape, layer=layer) if layer < self.first_dense else self.mixture(shape, layer)

    def mixture(self, shape: FFNShape, layer: int) -> FeedForward:
        raise NotImplementedError

    def router_weights(self, shape: FFNShape) -> int:
        """Return the multiply-adds of the router per token."""
        raise NotImplementedError

    def computed(self, shape: FFNShape) -> float:
        """Return the mean number of routed experts that are computed per token."""
        return self.active

    def matmul_params(self, shape: FFNShape, *, layer: int) -> float:
        if layer < self.first_dense:
            return Dense().matmul_params(shape, layer=layer)
        kind, width = network(shape.gated), self.width(shape)
        of_experts = self.computed(shape) * kind.matmul_params(shape.d_model, width)
        of_shared = kind.matmul_params(shape.d_model, self.shared * width) + self.shared_gate * shape.d_model
        return of_experts + of_shared + self.router_weights(shape)

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        if layer < self.first_dense:
            return Dense().n_params(shape, layer=layer)
        width = self.width(shape)
        shared = network_params(shape, self.shared * width) if self.shared else 0
        router = self.router_weights(shape) + self.shared_gate * shape.d_model
        return self.n_experts * network_params(shape, width) + shared + router

    def n_idle(self, shape: FFNShape, *, layer: int, tokens: int = 1) -> int:
        if layer < self.first_dense:
            return 0
        return round(
            self.n_experts * (1 - self.active / self.n_experts) ** tokens * network_params(shape, self.width(shape))
        )


def check_k(k: int, n_experts: int) -> None:
    """Raise ConfigError if a token would use more experts than there are."""
    if k > n_experts:
        raise ConfigError(f"ffn.k={k} experts a token, and there are ffn.n_experts={n_experts}")
