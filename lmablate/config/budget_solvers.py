"""The sizes that a budget may move, and how each is solved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lmablate.budget import COSTS, WHAT, Missed, around, closest, meet, parameters
from lmablate.budget.search import STEPS
from lmablate.config.sizes import sizes
from lmablate.core.errors import ConfigError
from lmablate.schema.run_config import RunConfig, RunRequest

RATIO_TOLERANCE = 0.05  # of d_ff over d_model, where both are free


class Arm:
    """The run that is asked for, at sizes of choice, and what it costs."""

    def __init__(self, request: RunRequest, draft: RunConfig, match: str) -> None:
        self.request, self.draft, self.match = request, draft, match
        self.cost_of: Callable[[RunConfig], int] = COSTS[match]

    def at(self, **asked: int | None) -> RunConfig:
        """The run with these values of ``model.*`` as they are asked for, and the sizes that follow from them."""
        m = self.request.model.model_copy(update=asked)
        return self.draft.model_copy(update={"model": sizes(self.request, m)})

    def cost(self, **asked: int | None) -> int:
        return self.cost_of(self.at(**asked))

    @property
    def width_steps(self) -> tuple[int, ...]:
        """Steps of d_model that keep whole heads of an even width."""
        m = self.request.model
        if m.n_heads is None:
            return ((m.head_dim or 1) * (m.n_kv_heads or 1),)
        if m.head_dim is not None:
            return (8, 4, 2)
        return tuple(sorted({math.lcm(2 * m.n_heads, step) for step in (8, 4, 2)}, reverse=True))

    def follow(self, d_model: int) -> float:
        """The d_ff that keeps the ratio of the request at this width."""
        m, gated = self.request.model, self.request.activation.gated
        if m.ff_ratio is None or m.d_ff is not None:
            return d_model * (m.d_ff or 0) / m.d_model
        return m.ff_ratio * d_model * ((m.gated_scale or 2 / 3) if gated else 1.0)


class Knob(NamedTuple):
    """`sizes`: what it moves; `refuses`: keys that have no effect beside it; `acts`: does it change the cost?"""

    sizes: tuple[str, ...]
    refuses: tuple[str, ...]
    acts: Callable[[Arm], bool]
    solve: Callable[[Arm, float], RunConfig]


def _one(name: str, steps: Callable[[Arm], tuple[int, ...]]) -> dict[str, Any]:
    """A knob that is one size."""

    def acts(arm: Arm) -> bool:
        start = getattr(arm.draft.model, name)
        return not (name == "head_dim" and arm.request.model.n_heads is None) and (
            arm.cost(**{name: 2 * start}) > arm.cost(**{name: start})
        )

    def solve(arm: Arm, target: float) -> RunConfig:
        start = getattr(arm.draft.model, name)
        return arm.at(**{name: meet(target, lambda n: arm.cost(**{name: n}), start, steps(arm))})

    return {"sizes": (name,), "acts": acts, "solve": solve}


def _both_widths(arm: Arm, target: float) -> RunConfig:
    """d_model and d_ff at the ratio of the request, within 5 %.

    d_model moves in steps that keep whole heads; where none of these will do, in steps of 8, 4 and 2, and every head has
    the even width that is nearest d_model / n_heads.
    """
    m = arm.request.model
    plans = [(step, False) for step in arm.width_steps]
    if m.n_heads is not None and m.head_dim is None:
        plans += [(step, True) for step in (8, 4, 2)]
    missed: dict[int, int] = {}
    # The coarsest d_ff that meets the budget may miss the ratio where a finer one would meet both.
    for (step, decoupled), fine in [*((plan, STEPS) for plan in plans), *((plan, STEPS[-1:]) for plan in plans)]:
        missed = {}

        def sized(d_model: int, decoupled: bool = decoupled) -> dict[str, int | None]:
            head_dim = 2 * max(1, round(d_model / (m.n_heads or 1) / 2)) if decoupled else m.head_dim
            return {"d_model": d_model, "head_dim": head_dim, "d_ff": max(2, 2 * round(arm.follow(d_model) / 2))}

        def cost(d_model: int, sized: Callable[[int], dict[str, int | None]] = sized) -> int:
            return arm.cost(**sized(d_model))

        found: list[tuple[float, RunConfig]] = []
        for d_model in around(target, cost, step, m.d_model):
            fixed = sized(d_model)
            missed[d_model] = cost(d_model)
            try:
                d_ff = meet(target, lambda n, fixed=fixed: arm.cost(**{**fixed, "d_ff": n}), fixed["d_ff"] or 2, fine)  # type: ignore[misc]
            except Missed:
                continue
            found.append((abs(d_ff / arm.follow(d_model) - 1), arm.at(**{**fixed, "d_ff": d_ff})))
        kept = [(miss, cfg) for miss, cfg in found if miss <= RATIO_TOLERANCE]
        if kept:
            return min(kept, key=lambda pair: pair[0])[1]
    raise Missed(sorted(missed), missed)


def _acts_on_widths(arm: Arm) -> bool:
    return KNOBS["d_model"].acts(arm) and KNOBS["d_ff"].acts(arm)


KNOBS: dict[str, Knob] = {
    "d_ff": Knob(refuses=("model.ff_ratio", "model.gated_scale"), **_one("d_ff", lambda arm: (8, 4, 2))),
    "d_model": Knob(refuses=(), **_one("d_model", lambda arm: arm.width_steps)),
    "d_ff+d_model": Knob(("d_model", "d_ff"), ("model.d_ff",), _acts_on_widths, _both_widths),
    "n_layers": Knob(refuses=(), **_one("n_layers", lambda arm: (1,))),
    "head_dim": Knob(refuses=("model.head_dim",), **_one("head_dim", lambda arm: (8, 4, 2))),
}


def solve_shape(arm: Arm, ratio: float, target: float, word: str) -> RunConfig:
    """d_model and n_layers for ``d_model / n_layers = ratio`` at a cost near `target`.

    The depth is the whole number that comes nearest the ratio, the width follows from the budget in steps that keep the
    head count, and d_ff takes up what the width's step leaves.
    """
    m = arm.request.model
    if m.n_heads is None:
        step = m.head_dim or 8  # whole heads of the given width
    else:
        step = 8 if m.head_dim is not None else math.lcm(2 * m.n_heads, 4)  # an even width for every head

    def cost(d_model: int, n_layers: int, d_ff: int | None = None) -> int:
        return arm.cost(d_model=d_model, n_layers=n_layers, d_ff=d_ff)

    def width(n_layers: int) -> int:
        near = around(target, lambda d: cost(d, n_layers), step, m.d_model)
        return min(near, key=lambda d: abs(math.log(cost(d, n_layers) / target)))

    guess = max(1, round((parameters(arm.draft).non_embedding / (12 * ratio**2)) ** (1 / 3)))
    depths = range(max(1, guess // 2), 2 * guess + 2)
    n_layers = min(depths, key=lambda n: abs(math.log(width(n) / n / ratio)))
    d_model = width(n_layers)
    if (
        abs(math.log(d_model / n_layers / ratio)) > math.log(2) / 2
    ):  # nearer to another option's ratio than to this one's
        raise ConfigError(
            f"{word}: with {target:,} {WHAT[arm.match]} the nearest whole number of layers gives d_model={d_model}, "
            f"n_layers={n_layers}, a ratio of {d_model / n_layers:.0f}: choose a larger model (model=small) or another ratio"
        )
    start = arm.at(d_model=d_model, n_layers=n_layers, d_ff=None).model.d_ff
    try:
        d_ff = meet(target, lambda n: cost(d_model, n_layers, n), start)
    except Missed as missed:
        d_ff = closest(target, lambda n: cost(d_model, n_layers, n), missed.nearest)
    return arm.at(d_model=d_model, n_layers=n_layers, d_ff=d_ff)
