"""Solve the sizes that a budget may change."""

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


class Candidate:
    """A run whose sizes may be changed, and its cost."""

    def __init__(self, request: RunRequest, draft: RunConfig, match: str) -> None:
        self.request, self.draft, self.match = request, draft, match
        self.cost_of: Callable[[RunConfig], int] = COSTS[match]

    def at(self, **values: int | None) -> RunConfig:
        """Return the run with these values of ``model.*`` requested, and the sizes that follow from them."""
        m = self.request.model.model_copy(update=values)
        return self.draft.model_copy(update={"model": sizes(self.request, m)})

    def cost(self, **values: int | None) -> int:
        """Return the cost at these values of ``model.*``."""
        return self.cost_of(self.at(**values))

    @property
    def width_steps(self) -> tuple[int, ...]:
        """Return the steps of d_model that keep whole heads of an even width."""
        m = self.request.model
        if m.n_heads is None:
            return ((m.head_dim or 1) * (m.n_kv_heads or 1),)
        if m.head_dim is not None:
            return (8, 4, 2)
        return tuple(sorted({math.lcm(2 * m.n_heads, step) for step in (8, 4, 2)}, reverse=True))

    def scaled_d_ff(self, d_model: int) -> float:
        """Return the d_ff that keeps the requested ratio at this width."""
        m, gated = self.request.model, self.request.activation.gated
        if m.ff_ratio is None or m.d_ff is not None:
            return d_model * (m.d_ff or 0) / m.d_model
        return m.ff_ratio * d_model * ((m.gated_scale or 2 / 3) if gated else 1.0)


class Knob(NamedTuple):
    """A way to meet a budget: the `sizes` it changes, the keys it makes useless (`refuses`), whether it `acts` on the cost."""

    sizes: tuple[str, ...]
    refuses: tuple[str, ...]
    acts: Callable[[Candidate], bool]
    solve: Callable[[Candidate, float], RunConfig]


def _one(name: str, steps: Callable[[Candidate], tuple[int, ...]]) -> dict[str, Any]:
    """Return the fields of a knob that changes a single size."""

    def acts(run: Candidate) -> bool:
        start = getattr(run.draft.model, name)
        return not (name == "head_dim" and run.request.model.n_heads is None) and (
            run.cost(**{name: 2 * start}) > run.cost(**{name: start})
        )

    def solve(run: Candidate, target: float) -> RunConfig:
        start = getattr(run.draft.model, name)
        return run.at(**{name: meet(target, lambda n: run.cost(**{name: n}), start, steps(run))})

    return {"sizes": (name,), "acts": acts, "solve": solve}


def _both_widths(run: Candidate, target: float) -> RunConfig:
    """Solve d_model and d_ff at the requested ratio, within 5 %.

    d_model moves in steps that keep whole heads. Where none of these meets the budget, it moves in steps of 8, 4 and 2, and
    every head gets the even width nearest to d_model / n_heads. Raises Missed."""
    m = run.request.model
    plans = [(step, False) for step in run.width_steps]
    if m.n_heads is not None and m.head_dim is None:
        plans += [(step, True) for step in (8, 4, 2)]
    missed: dict[int, int] = {}
    # The coarsest d_ff that meets the budget may miss the ratio where a finer one would meet both.
    for (step, decoupled), fine in [*((plan, STEPS) for plan in plans), *((plan, STEPS[-1:]) for plan in plans)]:
        missed = {}

        def sized(d_model: int, decoupled: bool = decoupled) -> dict[str, int | None]:
            head_dim = 2 * max(1, round(d_model / (m.n_heads or 1) / 2)) if decoupled else m.head_dim
            return {"d_model": d_model, "head_dim": head_dim, "d_ff": max(2, 2 * round(run.scaled_d_ff(d_model) / 2))}

        def cost(d_model: int, sized: Callable[[int], dict[str, int | None]] = sized) -> int:
            return run.cost(**sized(d_model))

        solutions: list[tuple[float, RunConfig]] = []
        for d_model in around(target, cost, step, m.d_model):
            fixed = sized(d_model)
            missed[d_model] = cost(d_model)
            try:
                d_ff = meet(target, lambda n, fixed=fixed: run.cost(**{**fixed, "d_ff": n}), fixed["d_ff"] or 2, fine)  # type: ignore[misc]
            except Missed:
                continue
            solutions.append((abs(d_ff / run.scaled_d_ff(d_model) - 1), run.at(**{**fixed, "d_ff": d_ff})))
        kept = [(miss, cfg) for miss, cfg in solutions if miss <= RATIO_TOLERANCE]
        if kept:
            return min(kept, key=lambda pair: pair[0])[1]
    raise Missed(sorted(missed), missed)


def _acts_on_widths(run: Candidate) -> bool:
    return KNOBS["d_model"].acts(run) and KNOBS["d_ff"].acts(run)


KNOBS: dict[str, Knob] = {
    "d_ff": Knob(refuses=("model.ff_ratio", "model.gated_scale"), **_one("d_ff", lambda run: (8, 4, 2))),
    "d_model": Knob(refuses=(), **_one("d_model", lambda run: run.width_steps)),
    "d_ff+d_model": Knob(("d_model", "d_ff"), ("model.d_ff",), _acts_on_widths, _both_widths),
    "n_layers": Knob(refuses=(), **_one("n_layers", lambda run: (1,))),
    "head_dim": Knob(refuses=("model.head_dim",), **_one("head_dim", lambda run: (8, 4, 2))),
}


def solve_shape(run: Candidate, ratio: float, target: float, axis: str) -> RunConfig:
    """Return the run with ``d_model / n_layers`` near `ratio` at a cost near `target`.

    The depth is the whole number nearest to the ratio. The width follows from the budget, in steps that keep the head count.
    d_ff makes up the difference that a step of the width leaves. `axis` names the override in errors. Raises ConfigError."""
    m = run.request.model
    if m.n_heads is None:
        step = m.head_dim or 8  # whole heads of the given width
    else:
        step = 8 if m.head_dim is not None else math.lcm(2 * m.n_heads, 4)  # an even width for every head

    def cost(d_model: int, n_layers: int, d_ff: int | None = None) -> int:
        return run.cost(d_model=d_model, n_layers=n_layers, d_ff=d_ff)

    def width(n_layers: int) -> int:
        near = around(target, lambda d: cost(d, n_layers), step, m.d_model)
        return min(near, key=lambda d: abs(math.log(cost(d, n_layers) / target)))

    guess = max(1, round((parameters(run.draft).non_embedding / (12 * ratio**2)) ** (1 / 3)))
    depths = range(max(1, guess // 2), 2 * guess + 2)
    n_layers = min(depths, key=lambda n: abs(math.log(width(n) / n / ratio)))
    d_model = width(n_layers)
    if (
        abs(math.log(d_model / n_layers / ratio)) > math.log(2) / 2
    ):  # nearer to another option's ratio than to this one's
        raise ConfigError(
            f"{axis}: with {target:,} {WHAT[run.match]} the nearest whole number of layers gives d_model={d_model}, "
            f"n_layers={n_layers}, a ratio of {d_model / n_layers:.0f}: choose a larger model (model=small) or another ratio"
        )
    start = run.at(d_model=d_model, n_layers=n_layers, d_ff=None).model.d_ff
    try:
        d_ff = meet(target, lambda n: cost(d_model, n_layers, n), start)
    except Missed as missed:
        d_ff = closest(target, lambda n: cost(d_model, n_layers, n), missed.nearest)
    return run.at(d_model=d_model, n_layers=n_layers, d_ff=d_ff)
