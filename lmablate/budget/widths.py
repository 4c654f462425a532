"""Widths of feed-forward networks of equal cost, gated or not."""

from __future__ import annotations

from collections.abc import Callable

from lmablate.budget.parameters import ffn_params
from lmablate.budget.search import STEPS, TOLERANCE


def matched_width(target: float, params_of: Callable[[int], int], guess: float) -> int:
    """Return the FFN width near `guess` whose parameter count is nearest `target`. It is a multiple of 8, which suits every kernel, or
    of 4 and then 2 if that misses the target by 1 % or more. Rounding to 256, as is common elsewhere, adds 50 % at width 128."""
    best = 0
    for step in STEPS:
        below = max(step, int(guess // step) * step)
        best = min((below, below + step), key=lambda width: abs(params_of(width) - target))
        if abs(params_of(best) - target) < TOLERANCE * target:
            break
    return best


def ff_width(d_model: int, *, ff_ratio: float, gated: bool, bias: bool, gated_scale: float | None) -> int:
    """Return d_ff for a dense-equivalent ratio.

    Plain: ``ff_ratio * d_model``, to a multiple of 8 (or 4, or 2). Gated: the width with the parameters of the plain FFN that would be
    built (about 2/3 of its width, Shazeer 2020, section 3), or `gated_scale` times its width (1.0: equal).
    """

    def nearest(width: float, gated: bool) -> int:
        hidden = 2 if gated else 1
        target = (hidden + 1) * d_model * width + (hidden * width + d_model if bias else 0)
        return matched_width(target, lambda w: ffn_params(d_model, w, gated=gated, bias=bias), width)

    plain = nearest(ff_ratio * d_model, gated=False)
    if not gated:
        return plain
    if gated_scale is not None:
        return nearest(gated_scale * plain, gated=True)
    target = ffn_params(d_model, plain, gated=False, bias=bias)
    return matched_width(target, lambda w: ffn_params(d_model, w, gated=True, bias=bias), 2 / 3 * plain)
