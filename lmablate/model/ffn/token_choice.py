"""The option whose tokens choose their experts, with the checks of its settings."""

from __future__ import annotations

from typing import Literal

from lmablate.core.errors import ConfigError
from lmablate.model.ffn.balance import Balance
from lmablate.model.ffn.base import FFNShape
from lmablate.model.ffn.mixture import ChosenByTokens
from lmablate.model.ffn.routing import Groups, TokenRouter
from lmablate.model.ffn.with_experts import Above0, Positive, WithExperts, check_k


class TokenChoice(WithExperts):
    """The option in which tokens choose experts (routing.TokenRouter); balancing as in balance.py."""

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
        communication_loss: Above0 | None,
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
        check_k(k, n_experts)
        self.active, self.k, self.scores, self.normalise, self.scale = k, k, scores, normalise, scale or 1.0
        self.noise, self.bias_rate, self.capacity_factor = bool(noise), bias_rate or 0.0, capacity_factor
        if normalise and k == 1:
            raise ConfigError(
                "ffn.normalise=true makes the weight of ffn.k=1 expert 1, whatever the router says: use ffn.normalise=false, or "
                "choose more experts"
            )
        losses = balance_loss or 0.0, device_loss or 0.0, communication_loss or 0.0
        self._check_balance(losses, balance_over, groups, group_k)
        self.balance = Balance(*losses, router_z_loss or 0.0, balance_over == "batch", groups or 1, group_k or 1)
        self.groups = self._groups(groups, group_k, group_best, bool(device_loss))

    def _check_balance(
        self, losses: tuple[float, float, float], over: str | None, groups: int | None, group_k: int | None
    ) -> None:
        balance, device, communication = losses
        if (over is None) == any(losses):
            problem = "needs ffn.balance_over=text or batch" if over is None else "says what a loss is over that is off"
            keys = [f"ffn.{key}_loss" for key in ("balance", "device", "communication")]
            key = f"{keys[0]}, {keys[1]} or {keys[2]}" if over is None else f"ffn.balance_over={over}"
            raise ConfigError(f"{key} {problem}: set both, or neither")
        if device and not groups:
            raise ConfigError("ffn.device_loss is over groups of experts: set ffn.groups")
        if communication and not (groups and group_k):
            raise ConfigError(
                "ffn.communication_loss counts the groups that a token is sent to, of the few that it may: set ffn.groups and "
                "ffn.group_k"
            )
        if self.n_experts == 1 and (balance or device or self.bias_rate):
            raise ConfigError("ffn.n_experts=1 leaves nothing to balance: drop ffn.balance_loss and ffn.bias_rate")

    def _groups(self, n: int | None, k: int | None, best: int | None, device: bool) -> Groups | None:
        """The groups that limit the choice, if any."""
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
