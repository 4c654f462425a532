"""Masks as pure functions of a seed, a step and a position in the batch.

Numbers are numpy's random_raw, which numpy promises never to change. Text i of a step draws the same in batches of any size. Each kind
of draw has its own stream, so none depends on the number of draws of another.
"""

from __future__ import annotations

import numpy as np

TOKENS, SPANS, SAMPLES = 2, 3, 4  # streams; prefixes use 1 (prefix.py), the order of windows has none
VALIDATION = 1 << 62  # used as step: the masks of the validation text are the same for every run


def raw(data_seed: int, step: int, stream: int, n: int, numbers: int) -> np.ndarray:
    """Return 64 random bits for each of `numbers` draws of `n` texts, uint64 ``[n, numbers]``."""
    seed = 0 if step == VALIDATION else data_seed
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(step, stream)))
    return bits.random_raw(n * numbers).reshape(n, numbers)


def fractions(bits: np.ndarray) -> np.ndarray:
    """Return uniform float64 in [0, 1) from the upper 53 bits."""
    return (bits >> np.uint64(11)) * 2.0**-53


def count(share: float, length: int) -> int:
    """Return how many of `length` tokens are masked: the nearest integer, at least one, and never all."""
    return min(max(1, round(share * length)), length - 1)


def chosen(bits: np.ndarray, open_: np.ndarray, share: float) -> np.ndarray:
    """Return bool ``[n, T]``: in each text `share` of its tokens that are `open_`, all sets equally likely. The chosen tokens are those
    with the smallest of `bits` ``[n, T]``."""
    keys = fractions(bits) + 2.0 * ~open_  # tokens that are not open come last
    rank = np.empty(keys.shape, dtype=np.int64)
    np.put_along_axis(rank, keys.argsort(-1, kind="stable"), np.arange(keys.shape[-1])[None], -1)
    n_open = open_.sum(-1)
    wanted = np.array([count(share, int(n)) if n > 1 else 0 for n in n_open])
    return rank < wanted[:, None]


def segments(bits: np.ndarray, total: int, parts: int) -> np.ndarray:
    """Split `total` into `parts` integers of at least 1, all ways equally likely: int64 ``[n, parts]``. The cuts are the positions of
    the smallest of `bits` ``[n, total - 1]``."""
    n = len(bits)
    if parts == 1:
        return np.full((n, 1), total)
    cuts = np.sort(bits.argsort(-1, kind="stable")[:, : parts - 1], -1) + 1
    edges = np.concatenate((np.zeros((n, 1), dtype=np.int64), cuts, np.full((n, 1), total)), -1)
    return np.diff(edges, axis=-1)


def pairs_ahead(prefix: int, window: int | None, stride: int | None) -> int:
    """Return how many later keys the queries of a prefix read: ``prefix - d`` at each distance d = stride, 2 stride, ... below
    `window`."""
    step = stride or 1
    n = ((prefix if window is None else min(window, prefix)) - 1) // step
    return n * prefix - step * n * (n + 1) // 2
