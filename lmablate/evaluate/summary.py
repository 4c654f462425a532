"""The summary of a text's scores: loss, loss by position, and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmablate.evaluate.calibration import calibration
from lmablate.evaluate.scoring import Scored


def position_edges(length: int, train_length: int) -> list[int]:
    """Return the edges of position bins, from 0 to `length`: four per doubling, single positions where that is less. The training
    length and its multiples by powers of two are always edges."""
    steps = 4 * math.ceil(math.log2(length)) if length > 1 else 0
    edges = {0, length, *(round(2 ** (i / 4)) for i in range(steps + 1))}
    edges |= {train_length << i for i in range(length.bit_length())}
    return sorted(edge for edge in edges if edge <= length)


def by_position(scored: Scored, length: int, train_length: int) -> list[dict[str, Any]]:
    """Return mean nats in each non-empty bin of positions ``[start, end)``: ``sum(tokens * mean)`` is the total."""
    edges = position_edges(length, train_length)
    at = np.searchsorted(edges, scored.position, side="right") - 1
    counts = np.bincount(at, minlength=len(edges) - 1)
    sums = np.bincount(at, weights=scored.nats.astype(np.float64), minlength=len(edges) - 1)
    return [
        {"start": edges[i], "end": edges[i + 1], "tokens": int(n), "nats_per_token": float(sums[i] / n)}
        for i, n in enumerate(counts)
        if n
    ]


def summarise(scored: Scored, *, n_bytes: int, length: int, stride: int, train_length: int) -> dict[str, Any]:
    """Return one evaluation of a text of `n_bytes` bytes. It has `nats_per_token`, `bits_per_byte` (end tokens paid for), `accuracy` of
    the most likely token, expected calibration error (`ece`) and its bins, and `positions`."""
    import torch

    total = float(scored.nats.astype(np.float64).sum())
    sure = None
    if np.isfinite(scored.confidence).all():
        sure = calibration(torch.from_numpy(scored.confidence), torch.from_numpy(scored.correct))
    return {
        "length": length,
        "times": length / train_length,
        "stride": stride,
        "tokens": len(scored.nats),
        "nats_per_token": total / len(scored.nats),
        "bits_per_byte": total / math.log(2) / n_bytes,
        "accuracy": float(scored.correct.mean()),
        "ece": sure and sure.ece,
        "calibration": [row._asdict() for row in sure.table] if sure else [],
        "positions": by_position(scored, length, train_length),
    }
