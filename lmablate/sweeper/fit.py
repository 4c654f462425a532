"""Fit the best learning rate of an arm to the final losses over a grid: a parabola in log LR around the lowest point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

Edge = Literal["low", "high"]
DIGITS = 3  # significant digits of a fitted rate: more would suggest a precision that the fit does not have


class Fit(NamedTuple):
    """The result of a grid of learning rates. `lr` is None where every rate diverged.

    `edge`: the best point has no neighbour on that side, so the optimum may lie beyond it. `predicted`: the loss at `lr`
    by the parabola, nats per token. `coefficients`: of ``a x^2 + b x + c`` with ``x = ln(lr)``, None without a parabola.
    `residual`: root mean square of the residuals at the fitted points (`used`). `words`: a sentence for the reader.
    """

    lr: float | None
    predicted: float | None
    edge: Edge | None
    coefficients: tuple[float, float, float] | None
    residual: float | None
    used: tuple[float, ...]
    words: str


def no_fit(words: str) -> Fit:
    """Return the result of a grid without a best rate, for the reason `words`."""
    return Fit(None, None, None, None, None, (), words)


def fit_lr(losses: Mapping[float, float | None]) -> Fit:
    """Return the fit of the final `losses` (nats per token, by learning rate; None: a run diverged there).

    The parabola is a least-squares fit through the lowest point and up to two on either side. If it has no minimum between the
    neighbours of the lowest point, the one through these three is used. A neighbour that diverged bounds the optimum but
    gives no parabola; then the lowest point itself is taken.
    """
    grid = sorted(losses)
    finite = [lr for lr in grid if losses[lr] is not None]
    if not finite:
        return no_fit(f"every learning rate from {grid[0]:g} to {grid[-1]:g} diverged")
    value = {lr: float(losses[lr]) for lr in finite}  # type: ignore[arg-type]
    best = min(finite, key=lambda lr: (value[lr], lr))
    at = grid.index(best)
    below, above = grid[at - 1] if at else None, grid[at + 1] if at + 1 < len(grid) else None
    if below is None or above is None:
        edge: Edge = "low" if below is None else "high"
        end = "lowest" if below is None else "highest"
        return Fit(
            best, value[best], edge, None, None, (best,), f"the best learning rate, {best:g}, is the {end} tried"
        )
    lost = [lr for lr in (below, above) if losses[lr] is None]
    if lost:
        message = f"the best point of the grid, {best:g}; {' and '.join(f'{lr:g}' for lr in lost)} beside it diverged"
        return Fit(best, value[best], None, None, None, (best,), message)
    around = [lr for lr in grid[max(0, at - 2) : at + 3] if lr in value]
    for window in (around, [below, best, above]):
        x, y = np.log(window), np.array([value[lr] for lr in window])
        middle = math.log(best)  # centred, since the powers of ln(lr) are nearly parallel
        a, b, c = (float(k) for k in np.polyfit(x - middle, y, 2))
        vertex = middle - b / (2 * a) if a > 0 else math.inf
        if not math.log(below) <= vertex <= math.log(above):
            continue
        lr = rounded(math.exp(vertex))
        residual = float(np.sqrt(np.mean((np.polyval((a, b, c), x - middle) - y) ** 2)))
        coefficients = (a, b - 2 * a * middle, c - b * middle + a * middle**2)
        message = f"{lr:g}, the lowest point of a parabola through {len(window)} learning rates"
        return Fit(lr, c - b * b / (4 * a), None, coefficients, residual, tuple(window), message)
    message = f"the best point of the grid, {best:g}; its neighbours are no higher, so there is no parabola"
    return Fit(best, value[best], None, None, None, (best,), message)


def rounded(lr: float) -> float:
    """Return `lr` to DIGITS significant digits, so that the same losses always name the same run."""
    return float(f"{lr:.{DIGITS}g}")


def beyond(grid: list[float], edge: Edge) -> float:
    """Return the next learning rate past an end of the grid, at the ratio of its last step there."""
    ordered = sorted(grid)
    if len(ordered) == 1:
        return rounded(ordered[0] * (0.5 if edge == "low" else 2.0))
    if edge == "low":
        return rounded(ordered[0] ** 2 / ordered[1])
    return rounded(ordered[-1] ** 2 / ordered[-2])
