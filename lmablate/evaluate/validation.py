"""Loss on the fixed validation text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from lmablate.data.tasks.store import TaskData
from lmablate.evaluate.ready import evaluating
from lmablate.evaluate.task_accuracy import Evaluation, evaluate_task
from lmablate.objective import IGNORE, Batch, Objective, ValidationText, vocab_size

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM


class Ranks(Protocol):
    """The processes of one run, as evaluation needs them."""

    def assigned(self, items: list[Any]) -> Iterable[tuple[Any, bool]]:
        """Yield what this process evaluates, each with whether it counts."""

    def sum(self, values: list[float]) -> list[float]:
        """Return the sums over all processes."""


def evaluate(
    model: TransformerLM,
    data: TokenData,
    objective: Objective,
    *,
    context_length: int,
    batch_size: int,
    device: str,
    with_lengths: bool = False,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Return the loss of `objective` on the validation text, or on the scored tokens of a task. At the end of a run (`with_lengths`) it
    includes the objective's yardsticks, or a task at other lengths. Dropout is off; a non-finite loss becomes nan."""
    if isinstance(data, TaskData):
        return evaluate_task(model, data, batch_size=batch_size, device=device, with_lengths=with_lengths)
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(context_length))
    own = objective.validation(inputs, targets)
    further = objective.yardsticks(inputs, targets) if with_lengths else {}
    if model.encoder is not None:  # an encoder requires one prefix for all texts
        at = own.prefix
        assert at is not None
        further = {k: x for k, x in further.items() if x.prefix is not None and torch.equal(x.prefix, at)}
    rows = data.val_rows(context_length)
    found = _losses(model, objective, {"": own, **further}, list(rows.values()), batch_size, device, ranks)
    by_text = found.pop("")
    nats, count = _total(by_text)
    if not math.isfinite(nats):
        return Evaluation(math.nan, math.nan)
    whole = not objective.looks_ahead and count == int((targets != IGNORE).sum())
    bpb = nats / math.log(2) / data.val_bytes if whole else None
    texts: dict[str, float | None] = {}
    for text, (own_nats, own_count) in zip(data.texts, by_text, strict=False):
        texts[f"val_loss_{text.name}"] = own_nats / own_count
        texts[f"val_bpb_{text.name}"] = own_nats / math.log(2) / text.val_bytes if whole else None
    if not with_lengths:
        return Evaluation(nats / count, bpb, texts=texts)
    yardsticks = {name: a / n for name, parts in found.items() for a, n in [_total(parts)] if n}
    if objective.has_measures:
        log_p = unigram(data.train, vocab_size(model))
        yardsticks |= _measured(model, objective, ValidationText(inputs, targets, log_p, batch_size, device))
    return Evaluation(nats / count, bpb, yardsticks=yardsticks, texts=texts)


def _total(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return sum(nats for nats, _ in parts), sum(count for _, count in parts)


@torch.no_grad()
def _measured(model: TransformerLM, objective: Objective, text: ValidationText) -> dict[str, float]:
    with evaluating(model):
        return objective.measures(model, text)


@torch.no_grad()
def _losses(
    model: TransformerLM,
    objective: Objective,
    batches: Mapping[str, Batch],
    rows: Sequence[slice],
    batch_size: int,
    device: str,
    ranks: Ranks | None,
) -> dict[str, list[tuple[float, int]]]:
    """Summed nats and number of counted targets of `rows` of each of `batches`; those that read alike share their passes."""
    nats = {name: [0.0] * len(rows) for name in batches}
    with evaluating(model):
        for group in _alike(batches):
            for i, own in enumerate(rows):
                chunks = list(zip(*(batches[name].rows(own).split(batch_size) for name in group), strict=True))
                for parts, counts in ranks.assigned(chunks) if ranks else ((chunk, True) for chunk in chunks):
                    moved = [part.to(device) for part in parts]
                    for name, value in zip(group, objective.summed(model, moved), strict=True):
                        nats[name][i] += value if counts else 0.0
    if ranks:
        sums = iter(ranks.sum([value for values in nats.values() for value in values]))
        nats = {name: [next(sums) for _ in values] for name, values in nats.items()}
    return {
        name: [(nats[name][i], objective.counted(batch.rows(own))) for i, own in enumerate(rows)]
        for name, batch in batches.items()
    }


def _alike(batches: Mapping[str, Batch]) -> list[list[str]]:
    """The names of `batches`, grouped where only their targets differ."""
    groups: list[list[str]] = []
    for name, batch in batches.items():
        for group in groups:
            if batches[group[0]].reads_like(batch):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def unigram(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return log-probabilities, float64 ``[V]``, under the add-one-smoothed counts of `tokens`."""
    counts = np.ones(vocab_size)
    for first in range(0, len(tokens), 1 << 24):
        counts += np.bincount(np.asarray(tokens[first : first + (1 << 24)]), minlength=vocab_size)
    return np.log(counts / counts.sum())
