"""Loss on the fixed validation text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lmablate.cross_entropy import CHUNK, worth_chunking
from lmablate.data.skills.store import SkillData
from lmablate.evaluate.skills import Evaluation, evaluate_task
from lmablate.objective import IGNORE, Batch, Objective, vocab_size

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM


def evaluate(
    model: TransformerLM,
    data: TokenData,
    objective: Objective,
    *,
    context_length: int,
    batch_size: int,
    device: str,
    with_lengths: bool = False,
) -> Evaluation:
    """The loss of `objective` on the validation text, or on the scored tokens of a task; at the end of a run (`with_lengths`)
    the objective's yardsticks too, or a task at other lengths. Dropout is off; a non-finite loss comes back as nan."""
    if isinstance(data, SkillData):
        return evaluate_task(model, data, batch_size=batch_size, device=device, with_lengths=with_lengths)
    inputs, targets = (torch.from_numpy(x) for x in data.val_windows(context_length))
    own = objective.validation(inputs, targets)
    further = objective.yardsticks(inputs, targets) if with_lengths else {}
    found = _losses(model, {"": own, **further}, batch_size, device)
    nats, count = found.pop("")
    if not math.isfinite(nats):
        return Evaluation(math.nan, math.nan)
    whole = count == int((targets != IGNORE).sum())
    bpb = nats / math.log(2) / data.val_bytes if whole else None
    return Evaluation(
        nats / count, bpb, yardsticks={name: a / n for name, (a, n) in found.items() if n} if with_lengths else None
    )


@torch.no_grad()
def _losses(
    model: TransformerLM, batches: Mapping[str, Batch], batch_size: int, device: str
) -> dict[str, tuple[float, int]]:
    """Summed nats and number of the targets that count of each of `batches`; those that read alike share their passes."""
    nats = dict.fromkeys(batches, 0.0)
    training = model.training
    model.eval()
    try:
        for group in _alike(batches):
            for parts in zip(*(batches[name].split(batch_size) for name in group), strict=True):
                inputs, _, prefix = parts[0].to(device)
                hidden = model.hidden(inputs) if prefix is None else model.hidden(inputs, prefix)
                targets = [part.targets.to(device).flatten() for part in parts]
                for name, value in zip(group, _nats(model, hidden.flatten(0, -2), targets), strict=True):
                    nats[name] += value
    finally:
        model.train(training)
    return {name: (nats[name], int((batch.targets != IGNORE).sum())) for name, batch in batches.items()}


def _alike(batches: Mapping[str, Batch]) -> list[list[str]]:
    """The names of `batches`, those together that differ in their targets alone."""
    groups: list[list[str]] = []
    for name, batch in batches.items():
        for group in groups:
            if batches[group[0]].reads_like(batch):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _nats(model: TransformerLM, hidden: Tensor, targets: list[Tensor]) -> list[float]:
    """The summed cross entropy of ``[N, D]`` hidden states for each of `targets`, with no more logits at a time than
    training holds."""
    rows = CHUNK if worth_chunking(len(hidden), vocab_size(model)) else len(hidden)
    sums: list[list[Tensor]] = [[] for _ in targets]
    for first in range(0, len(hidden), rows):
        log_p = F.log_softmax(model.logits(hidden[first : first + rows]).float(), -1)
        for mine, y in zip(sums, targets, strict=True):
            mine.append(F.nll_loss(log_p, y[first : first + rows], ignore_index=IGNORE, reduction="sum"))
    return [float(torch.stack(mine).sum()) for mine in sums]
