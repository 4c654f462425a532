"""Expected calibration error of the most likely token.

Guo et al. 2017 (arXiv 1706.04599, eq. 3): predictions are grouped into M bins of equal width by their confidence, the largest
probability, and ``ECE = sum over bins of (share of predictions) * |accuracy - mean confidence|``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15  # as in the paper


class Bin(NamedTuple):
    """Predictions with a confidence in ``(low, high]``; `confidence` and `accuracy` are means, None without predictions."""

    low: float
    high: float
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    confidence: float | None
    accuracy: float | None


class Calibration(NamedTuple):
    """The error `ece`, between 0 and 1, and `table`, a row per bin in order of confidence."""

    ece: float
    table: list[Bin]


def calibration(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Calibration:
    """Return the calibration of N predictions. `confidence` ``[N]`` is the probability of the prediction, `correct` ``[N]`` is 1 or
    true if it was right. A confidence on an edge belongs to the bin below, as in the paper, and 0 to the first."""
    if bins < 1 or confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"needs two equal vectors and a bin: {confidence.shape}, {correct.shape}, {bins} bins")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):  # also a nan
        raise ValueError("a confidence is a probability, from 0 to 1")
    exact = confidence.dtype if confidence.dtype in (torch.float32, torch.float64) else torch.float32
    edges = torch.arange(1, bins, dtype=exact, device=confidence.device) / bins
    indices = torch.bucketize(confidence.to(exact), edges)
    counts = torch.bincount(indices, minlength=bins)
    sure, right = (torch.bincount(indices, weights=x.double(), minlength=bins).tolist() for x in (confidence, correct))
    table = [
        Bin(i / bins, (i + 1) / bins, n, sure[i] / n if n else None, right[i] / n if n else None)
        for i, n in enumerate(counts.tolist())
    ]
    return Calibration(sum(abs(a - b) for a, b in zip(sure, right, strict=True)) / len(confidence), table)
