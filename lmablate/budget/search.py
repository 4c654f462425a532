"""The search for the integer at which an increasing cost meets a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

STEPS = (8, 4, 2)  # of a width: kernels prefer 8, and narrow networks need finer steps to meet a budget
TOLERANCE = 0.01  # of a budget
Cost = Callable[[int], float]


class Missed(Exception):
    """No candidate meets the target. `nearest` are the candidates around it, the lower one first (or one, at the edge), and `costs`
    their costs, unless they follow from the number alone."""

    def __init__(self, nearest: list[int], costs: dict[int, int] | None = None) -> None:
        super().__init__(f"the nearest are {nearest}")
        self.nearest, self.costs = nearest, costs


def around(target: float, cost: Cost, step: int, guess: int) -> list[int]:
    """Return the last multiple of `step` that costs at most `target` and the first one that costs more, or the latter alone. `cost`
    must be increasing; the search doubles from `guess`, then bisects."""
    low, high = 0, max(1, guess // step)
    while cost(high * step) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle * step) <= target else (low, middle)
    return [n * step for n in (low, high) if n]


def closest(target: float, cost: Cost, candidates: Sequence[int]) -> int:
    """Return the candidate with the nearest cost."""
    return min(candidates, key=lambda n: abs(cost(n) - target))


def fits(target: float, found: float) -> bool:
    """Return True if a cost is within the tolerance of its budget."""
    return abs(found - target) <= TOLERANCE * target


def meet(target: float, cost: Cost, guess: int, steps: Sequence[int] = STEPS) -> int:
    """Return a number whose cost is within the tolerance of `target`: the nearest one of the coarsest step that has one. Raises Missed
    with the two neighbours of the finest step."""
    near: list[int] = []
    for step in steps:
        near = around(target, cost, step, guess)
        best = closest(target, cost, near)
        if fits(target, cost(best)):
            return best
    raise Missed(near)
