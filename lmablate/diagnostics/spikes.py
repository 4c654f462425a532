"""Spike scores of loss and gradient norm, and the attention logit early in training, from the records of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmablate.schema.diagnostics import PREFIX

WINDOW, DEVIATIONS = 1000, 7.0
LEAST = 20  # values required before a judged one
SERIES = {"train_loss": "loss", "grad_norm": "grad_norm"}  # record field -> prefix of the result


class Spikes(NamedTuple):
    """The `score` in per cent of the `judged` values, None without any."""

    score: float | None
    judged: int


def spikes(values: Sequence[float]) -> Spikes:
    """Return the spike score of OLMo 2 (arXiv 2501.00656, section 3): the percentage of values at least seven standard deviations from
    the rolling average of the last 1,000 values.

    Average and deviation are of the values before the judged one, up to 1,000 of them; the first 20 are not judged. A non-finite value
    is a spike, and is left out of later averages.
    """
    series = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(series)
    center = float(series[finite].mean()) if finite.any() else 0.0  # sums of squares around it lose fewer digits
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
    """Return `loss_spike_score` and `grad_norm_spike_score` of a run's records in order (``load_history(...).to_dict("records")``, or
    the lines of history.jsonl), and `spike_values`, the number of judged values.

    A record is the mean over the steps since the last one: each step counts separately only with runtime.log_every=1.
    """
    rows = list(records)
    out: dict[str, float | int | None] = {}
    counted = 0
    for column, word in SERIES.items():
        # null in a training record stands for a non-finite number
        values = [np.nan if row[column] is None else float(row[column]) for row in rows if _trained(row, column)]
        found = spikes(values)
        out[f"{word}_spike_score"], counted = found.score, max(counted, found.judged)
    return {**out, "spike_values": counted}


def early_attention_logit(records: Iterable[Mapping[str, Any]], steps: int) -> float | None:
    """Return the largest attention logit at 5 % of a run of `steps` steps: at the measured step nearest to it, from 1 to 10 %.

    None without such a record (``diagnostics=standard`` measures every 50 steps), or if the run diverged before it. Wortsman et al. (2023,
    arXiv 2309.14322, section 3.3) foretell from it whether a run will diverge."""
    column = f"{PREFIX}max_attention_logit"
    found = [row for row in records if row.get(column) is not None and 0.01 * steps <= row["step"] <= 0.1 * steps]
    return float(min(found, key=lambda row: abs(row["step"] - 0.05 * steps))[column]) if found else None


def _trained(row: Mapping[str, Any], column: str) -> bool:
    """Return True for a record of training: those of validation or diagnostics alone have no learning rate."""
    lr = row.get("lr")
    return column in row and lr is not None and lr == lr
