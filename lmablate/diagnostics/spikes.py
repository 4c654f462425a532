"""How often a loss or a gradient norm jumps, from the records of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WINDOW, DEVIATIONS = 1000, 7.0
LEAST = 20  # values that must stand before one that is judged
SERIES = {"train_loss": "loss", "grad_norm": "grad_norm"}  # the records' names, and ours


class Spikes(NamedTuple):
    """`score` in per cent of the `judged` values, None where there are none."""

    score: float | None
    judged: int


def spikes(values: Sequence[float]) -> Spikes:
    """The spike score of OLMo 2 (arXiv 2501.00656, section 3): the percentage of values that lie at least seven standard
    deviations from the rolling average of the last 1,000 values.

    Average and deviation are of the values before the one that is judged, up to 1,000 of them; the first 20 are not
    judged. A value that is not finite is a spike, and no part of later averages.
    """
    series = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(series)
    center = float(series[finite].mean()) if finite.any() else 0.0  # sums of squares lose fewer digits around it
    x = np.where(finite, series - center, 0.0)
    sums = [np.concatenate(([0.0], np.cumsum(term))) for term in (finite.astype(np.float64), x, x * x)]
    at = np.arange(len(series))
    first = np.maximum(0, at - WINDOW)
    n, total, squares = (s[at] - s[first] for s in sums)
    judged = n >= LEAST
    n = np.maximum(n, 1.0)
    mean = total / n
    deviation = np.sqrt(np.maximum(0.0, squares / n - mean**2))
    jumps = judged & (~finite | (np.abs(x - mean) >= np.maximum(DEVIATIONS * deviation, 1e-12)))
    count = int(judged.sum())
    return Spikes(100.0 * int(jumps.sum()) / count if count else None, count)


def spike_scores(records: Iterable[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """`loss_spike_score` and `grad_norm_spike_score` of a run's records in order (``load_history(...).to_dict("records")``,
    or the lines of history.jsonl), and `spike_values`, how many were judged.

    A record is the mean over the steps since the last one: only with runtime.log_every=1 does every step count for itself.
    """
    rows = list(records)
    out: dict[str, float | int | None] = {}
    counted = 0
    for column, word in SERIES.items():
        # a record of training that holds null had a number that was not finite
        values = [np.nan if row[column] is None else float(row[column]) for row in rows if _trained(row, column)]
        found = spikes(values)
        out[f"{word}_spike_score"], counted = found.score, max(counted, found.judged)
    return {**out, "spike_values": counted}


def _trained(row: Mapping[str, Any], column: str) -> bool:
    """Whether a record is one of training: those of validation alone, or of diagnostics, have no learning rate."""
    lr = row.get("lr")
    return column in row and lr is not None and lr == lr
