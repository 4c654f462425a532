"""The options of the axis that have experts, from their YAML files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmablate.errors import ConfigError
from lmablate.model.ffn.balance import Balance
from lmablate.model.ffn.base import FeedForward, FFNOption, FFNShape
from lmablate.model.ffn.dense import Dense, network, network_params
from lmablate.model.ffn.mixture import ChosenByExperts, ChosenByTokens, expert_capacity
from lmablate.model.ffn.routing import Groups, HashRouter, TokenRouter

Positive = Annotated[int, Field(gt=0)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
STEPS = (8, 4, 2, 1)


def expert_width(d_ff: int, ratio: float) -> int:
    """``ratio * d_ff`` where that is whole, else a multiple of 8, or of 4, 2 or 1 where that misses it by more than 1 %."""
    wanted = ratio * d_ff
    if round(wanted) > 0 and abs(wanted - round(wanted)) < 1e-6 * wanted:
        return round(wanted)
    near = (max(step, step * round(wanted / step)) for step in STEPS)
    return next((width for width in near if abs(width - wanted) <= 0.01 * wanted), max(1, round(wanted)))


class _WithExperts(FFNOption):
    """What all of them have: E networks of ``expert_ratio * d_ff``, by default as wide as makes those that a token meets as
    wide as one dense network together; `shared` ones that every token meets; and `first_dense` layers without any."""

    met: float  # routed experts that a token meets, on average

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
        """Of one routed expert."""
        ratio = self.expert_ratio
        return expert_width(shape.d_ff, 1 / (self.met + self.shared) if ratio is None else ratio)

    def branch(self, shape: FFNShape, *, layer: int) -> FeedForward:
        return Dense().branch(shape, layer=layer) if layer < self.first_dense else self.mixture(shape, layer)

    def mixture(self, shape: FFNShape, layer: int) -> FeedForward:
        raise NotImplementedError

    def router_weights(self, shape: FFNShape) -> int:
        """Multiply-adds of the router with a token."""
        raise NotImplementedError

    def computed(self, shape: FFNShape) -> float:
        """Routed experts that are computed for a token, on average."""
        return self.met

    def weights_per_token(self, shape: FFNShape, *, layer: int) -> float:
        if layer < self.first_dense:
            return Dense().weights_per_token(shape, layer=layer)
        kind, width = network(shape.gated), self.width(shape)
        of_experts = self.computed(shape) * kind.weights_per_token(shape.d_model, width)
        of_shared = kind.weights_per_token(shape.d_model, self.shared * width) + self.shared_gate * shape.d_model
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
            self.n_experts * (1 - self.met / self.n_experts) ** tokens * network_params(shape, self.width(shape))
        )


def _check_k(k: int, n_experts: int) -> None:
    if k > n_experts:
        raise ConfigError(f"ffn.k={k} experts a token, and there are ffn.n_experts={n_experts}")


class TokenChoice(_WithExperts):
    """Tokens choose experts (routing.TokenRouter); balancing as in balance.py."""

    def __init__(
        self,
        *,
        n_experts: Positive,
        k: Positive,
        scores: Literal["softmax", "sigmoid"],
        normalise: bool,
        scale: Above0 | None,
        noise: bool | None,
        expert_ratio: Above0 | None,
        shared: Positive | None,
        shared_gate: bool | None,
        first_dense: Positive | None,
        groups: Positive | None,
        group_k: Positive | None,
        group_best: Positive | None,
        capacity_factor: Above0 | None,
        balance_loss: Above0 | None,
        balance_over: Literal["text", "batch"] | None,
        device_loss: Above0 | None,
        router_z_loss: Above0 | None,
        bias_rate: Above0 | None,
    ) -> None:
        super().__init__(
            n_experts=n_experts,
            expert_ratio=expert_ratio,
            shared=shared,
            shared_gate=shared_gate,
            first_dense=first_dense,
        )
        _check_k(k, n_experts)
        self.met, self.k, self.scores, self.normalise, self.scale = k, k, scores, normalise, scale or 1.0
        self.noise, self.bias_rate, self.capacity_factor = bool(noise), bias_rate or 0.0, capacity_factor
        if normalise and k == 1:
            raise ConfigError(
                "ffn.normalise=true makes the weight of ffn.k=1 expert 1, whatever the router says: use ffn.normalise=false, or "
                "choose more experts"
            )
        losses = balance_loss or 0.0, device_loss or 0.0, router_z_loss or 0.0
        self._check_balance(losses, balance_over, groups)
        self.balance = Balance(*losses, balance_over == "batch", groups or 1)
        self.groups = self._groups(groups, group_k, group_best, bool(device_loss))

    def _check_balance(self, losses: tuple[float, float, float], over: str | None, groups: int | None) -> None:
        balance, device, _ = losses
        if (over is None) == bool(balance or device):
            told = "needs ffn.balance_over=text or batch" if over is None else "says what a loss is over that is off"
            key = "ffn.balance_loss or ffn.device_loss" if over is None else f"ffn.balance_over={over}"
            raise ConfigError(f"{key} {told}: set both, or neither")
        if device and not groups:
            raise ConfigError("ffn.device_loss is over groups of experts: set ffn.groups")
        if self.n_experts == 1 and (balance or device or self.bias_rate):
            raise ConfigError("ffn.n_experts=1 leaves nothing to balance: drop ffn.balance_loss and ffn.bias_rate")

    def _groups(self, n: int | None, k: int | None, best: int | None, device: bool) -> Groups | None:
        """The groups that limit the choice, if they do."""
        if n is None or k is None:
            for key, value in (("group_k", k), ("group_best", best), ("groups", None if device else n)):
                if value is not None:
                    raise ConfigError(
                        f"ffn.{key}={value} has no effect without {'ffn.groups' if n is None else 'ffn.group_k'}: set it, or leave "
                        "this out"
                    )
        if n is not None and (self.n_experts % n or n == 1):
            raise ConfigError(f"ffn.groups={n} does not split ffn.n_experts={self.n_experts} into several equal groups")
        if n is None or k is None:
            return None
        size = self.n_experts // n
        if k >= n:
            raise ConfigError(f"ffn.group_k={k} of ffn.groups={n} groups limits nothing: give less than {n}")
        if self.k > k * size:
            raise ConfigError(f"ffn.k={self.k} experts do not fit into ffn.group_k={k} groups of {size}")
        if best is not None and best > size:
            raise ConfigError(f"ffn.group_best={best} is more than the {size} experts of a group")
        return Groups(n, k, best or 1)

    def mixture(self, shape: FFNShape, layer: int) -> ChosenByTokens:
        router = TokenRouter(
            shape.d_model,
            self.n_experts,
            self.k,
            sigmoid=self.scores == "sigmoid",
            normalise=self.normalise,
            scale=self.scale,
            biased=bool(self.bias_rate),
            noisy=self.noise,
            groups=self.groups,
            layer=layer,
        )
        return ChosenByTokens(
            shape,
            router,
            n_experts=self.n_experts,
            width=self.width(shape),
            shared=self.shared,
            shared_gate=self.shared_gate,
            capacity_factor=self.capacity_factor,
            balance=self.balance,
            bias_rate=self.bias_rate,
        )

    def router_weights(self, shape: FFNShape) -> int:
        return shape.d_model * self.n_experts * (1 + self.noise)

    def computed(self, shape: FFNShape) -> float:
        return self.k * min(1.0, self.capacity_factor or 1.0)

    def n_params(self, shape: FFNShape, *, layer: int) -> int:
        biases = self.n_experts if self.bias_rate and layer >= self.first_dense else 0
        return super().n_params(shape, layer=layer) + biases


class HashRouting(_WithExperts):
    """The token's own number says which experts it meets (routing.HashRouter)."""

    def __init__(
        self,
        *,
        n_experts: Positive,
        k: Positive,
        expert_ratio: Above0 | None,
        shared: Positive | None,
        shared_gate: bool | None,
        first_dense: Positive | None,
    ) -> None:
        super().__init__(
            n_experts=n_experts,
            expert_ratio=expert_ratio,
            shared=shared,
            shared_gate=shared_gate,
            first_dense=first_dense,
        )
        _check_k(k, n_experts)
        self.met = self.k = k

    def mixture(self, shape: FFNShape, layer: int) -> ChosenByTokens:
        return ChosenByTokens(
            shape,
            HashRouter(self.n_experts, self.k, layer=layer),
            n_experts=self.n_experts,
            width=self.width(shape),
            shared=self.shared,
            shared_gate=self.shared_gate,
            capacity_factor=None,
            balance=Balance(0.0, 0.0, 0.0, False, 1),
            bias_rate=0.0,
        )

    def router_weights(self, shape: FFNShape) -> int:
        return 0


class ExpertChoice(_WithExperts):
    """Experts choose tokens (routing.ExpertRouter): `capacity_factor` experts a token on average. Under an objective that predicts
    what comes next the choice tells a token of those after it, so `leaks` must be set to say that this is known."""

    def __init__(
        self,
        *,
        n_experts: Positive,
        capacity_factor: Above0,
        leaks: bool,
        expert_ratio: Above0 | None,
        shared: Positive | None,
        shared_gate: bool | None,
        first_dense: Positive | None,
    ) -> None:
        super().__init__(
            n_experts=n_experts,
            expert_ratio=expert_ratio,
            shared=shared,
            shared_gate=shared_gate,
            first_dense=first_dense,
        )
        if capacity_factor > n_experts:
            raise ConfigError(
                f"ffn.capacity_factor={capacity_factor:g} is how many experts a token meets on average, and there are "
                f"ffn.n_experts={n_experts}"
            )
        self.met, self.leaks = capacity_factor, leaks

    def check(self, n_layers: int, *, reads_all: bool) -> None:
        super().check(n_layers, reads_all=reads_all)
        if not reads_all and not self.leaks:
            raise ConfigError(
                "ffn=expert_choice: an expert picks its tokens from the whole text, so that whether a token is picked tells of those "
                "after it, which this objective asks to predict: use ffn=token_choice, an objective that reads the whole text "
                "(objective=mlm), or set ffn.leaks=true to measure it all the same"
            )

    def mixture(self, shape: FFNShape, layer: int) -> ChosenByExperts:
        return ChosenByExperts(
            shape,
            n_experts=self.n_experts,
            width=self.width(shape),
            shared=self.shared,
            shared_gate=self.shared_gate,
            capacity_factor=self.met,
        )

    def router_weights(self, shape: FFNShape) -> int:
        return shape.d_model * self.n_experts

    def computed(self, shape: FFNShape) -> float:
        length = shape.context_length
        return expert_capacity(self.met, length, self.n_experts) * self.n_experts / length
