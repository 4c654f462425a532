"""Loss and accuracy on the fixed validation set of a task, and the accuracy at other lengths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from lmablate.evaluate.ready import evaluating
from lmablate.objective import IGNORE

if TYPE_CHECKING:
    from lmablate.data.tasks.recall import Examples
    from lmablate.data.tasks.store import TaskData
    from lmablate.model.transformer import TransformerLM

ROWS = 2048  # of logits at once


class Evaluation(NamedTuple):
    """The result of an evaluation.

    `val_loss` is in nats per target that counts, `val_bpb` in bits per UTF-8 byte of the text, including the nats of end tokens. The
    latter is None unless all of the text counts, since the counted part depends on the tokenizer. `yardsticks` are further losses of a
    finished run (see Objective.yardsticks). `texts` are ``val_loss_<name>`` and ``val_bpb_<name>`` of each text of a mixture.

    For a task: `val_loss` in nats per scored token, no bytes, the fraction of right answers, and that fraction at other lengths for a
    finished run.
    """

    val_loss: float
    val_bpb: float | None
    val_accuracy: float | None = None
    val_accuracy_by_length: dict[str, float | None] | None = None
    yardsticks: dict[str, float] | None = None
    texts: dict[str, float | None] | None = None


class Answers(NamedTuple):
    """Sums over the scored targets: cross entropy in nats, the number for which the most likely token was right, and their number."""

    nats: float
    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n


def evaluate_task(
    model: TransformerLM, data: TaskData, *, batch_size: int, device: str, with_lengths: bool
) -> Evaluation:
    """Evaluate on the validation set of a task; see validation.evaluate."""
    found = answer(model, data.val_windows(data.length), batch_size=batch_size, device=device)
    if not math.isfinite(found.nats):
        return Evaluation(math.nan, None, found.accuracy)
    lengths = accuracy_by_length(model, data, batch_size=batch_size, device=device) if with_lengths else None
    return Evaluation(found.nats / found.n, None, found.accuracy, lengths or None)


@torch.no_grad()
def answer(model: TransformerLM, examples: Examples, *, batch_size: int, device: str) -> Answers:
    """Score the targets of `examples`, inputs and targets ``[n, T]``. Dropout is off; only scored positions get logits."""
    inputs, targets = examples
    nats, right, n = 0.0, 0, 0
    with evaluating(model):
        for start in range(0, len(inputs), batch_size):
            x = torch.from_numpy(inputs[start : start + batch_size]).to(device)
            y = torch.from_numpy(targets[start : start + batch_size]).to(device)
            scored = y != IGNORE
            hidden, y = model.hidden(x)[scored], y[scored]
            for states, truth in zip(hidden.split(ROWS), y.split(ROWS), strict=True):
                logits = model.logits(states).float()
                nats += float(F.cross_entropy(logits, truth, reduction="sum"))
                right += int((logits.argmax(-1) == truth).sum())
            n += len(y)
    return Answers(nats, right, n)


def accuracy_by_length(
    model: TransformerLM, data: TaskData, *, batch_size: int, device: str
) -> dict[str, float | None]:
    """Return the accuracy at each of data.length_factors, by the length of TaskData.val_lengths; None without positions
    (``posemb=learned`` beyond the context)."""
    found: dict[str, float | None] = {}
    for length, examples in data.val_lengths().items():
        beyond = model.posemb.bounded and examples[0].shape[1] > data.length
        found[str(length)] = None if beyond else answer(model, examples, batch_size=batch_size, device=device).accuracy
    return found
