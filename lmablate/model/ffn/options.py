"""Options in which a hash or the experts choose, and not the tokens."""

from __future__ import annotations

from lmablate.core.errors import ConfigError
from lmablate.model.ffn.balance import Balance
from lmablate.model.ffn.base import FFNShape
from lmablate.model.ffn.mixture import ChosenByExperts, ChosenByTokens, expert_capacity
from lmablate.model.ffn.routing import HashRouter
from lmablate.model.ffn.with_experts import Above0, Positive, WithExperts, check_k


class HashRouting(WithExperts):
    """The option in which the token id determines its experts (routing.HashRouter)."""

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
        check_k(k, n_experts)
        self.active = self.k = k

    def mixture(self, shape: FFNShape, layer: int) -> ChosenByTokens:
        return ChosenByTokens(
            shape,
            HashRouter(self.n_experts, self.k, layer=layer),
            n_experts=self.n_experts,
            width=self.width(shape),
            shared=self.shared,
            shared_gate=self.shared_gate,
            capacity_factor=None,
            balance=Balance(0.0, 0.0, 0.0, 0.0, False, 1, 1),
            bias_rate=0.0,
        )

    def router_weights(self, shape: FFNShape) -> int:
        return 0


class ExpertChoice(WithExperts):
    """The option in which experts choose tokens (routing.ExpertRouter): `capacity_factor` experts per token on average. If the
    objective predicts later tokens, the choice reveals them, so `leaks` must be set to accept that."""

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
        self.active, self.leaks = capacity_factor, leaks

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
            capacity_factor=self.active,
        )

    def router_weights(self, shape: FFNShape) -> int:
        return shape.d_model * self.n_experts

    def computed(self, shape: FFNShape) -> float:
        length = shape.context_length
        return expert_capacity(self.active, length, self.n_experts) * self.n_experts / length
