"""Numbers from curves: sensitivity to the learning rate, and a loss difference as compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

FARTHEST = 2.0  # a curve is extrapolated up to this multiple of its tokens


class Compute(NamedTuple):
    """A loss difference as compute.

    `factor`: the multiple of its own tokens that the baseline needs for the other arm's loss. None if that is too far beyond
    its curve; `words` says so."""

    factor: float | None
    words: str


def lr_sensitivity(losses: Mapping[float, float | None], init_loss: float) -> float:
    """Return the learning-rate sensitivity, in nats (Wortsman et al. 2023, arXiv 2309.14322, section 2.2).

    It is the mean over a grid of learning rates of min(final loss, `init_loss`) minus the lowest of them. A run that diverged
    (None) counts as the loss at initialisation. Raises ValueError for an empty grid."""
    if not losses:
        raise ValueError("a sensitivity needs a grid of learning rates")
    clipped = [init_loss if loss is None else min(loss, init_loss) for loss in losses.values()]
    return float(np.mean(clipped) - min(clipped))


def effective_compute(tokens: Sequence[float], losses: Sequence[float], target: float) -> Compute:
    """Return the loss `target` as compute: the baseline's tokens at that loss over the tokens it was trained on.

    Between points the curve is straight in log tokens. Past its end it continues with the slope of its last half, fitted as
    loss against log tokens. On a schedule that decays the rate, the curve before its end lies above the loss that a run of that
    length would reach, so a factor below 1 is an upper bound.
    """
    points = sorted({float(t): float(y) for t, y in zip(tokens, losses, strict=True) if t > 0}.items())
    if len(points) < 3:
        return Compute(None, "the baseline's curve has fewer than three evaluations (runtime.evaluations)")
    x, y = np.log([t for t, _ in points]), np.minimum.accumulate([loss for _, loss in points])
    if target >= y[0]:
        return Compute(None, "the baseline was below that loss at its first evaluation")
    if target >= y[-1]:
        at = int(np.argmax(y <= target))
        share = (y[at - 1] - target) / (y[at - 1] - y[at])
        return _reached(float(np.exp(x[at - 1] + share * (x[at] - x[at - 1]) - x[-1])))
    half = slice(len(x) // 2, None) if len(x) >= 4 else slice(None)
    slope = float(np.polyfit(x[half], y[half], 1)[0])
    if slope >= 0:
        return Compute(None, "the baseline's curve no longer falls")
    factor = float(np.exp((target - y[-1]) / slope))
    if factor > FARTHEST:
        return Compute(None, f"more than {FARTHEST:g} times the baseline's tokens")
    return _reached(factor)


def _reached(factor: float) -> Compute:
    return Compute(factor, f"the baseline reaches it with {factor:.2f} of its tokens")
