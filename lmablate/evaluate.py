"""Loss on the fixed validation text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmablate.cross_entropy import CHUNK, worth_chunking
from lmablate.objective import IGNORE, vocab_size

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM


class Evaluation(NamedTuple):
    """`val_loss` in nats per token; `val_bpb` in bits per UTF-8 byte of the text, the end tokens' nats included."""

    val_loss: float
    val_bpb: float


@torch.no_grad()
def evaluate(model: TransformerLM, data: TokenData, *, context_length: int, batch_size: int, device: str) -> Evaluation:
    """Predict every token of the validation text once. Dropout is off; a non-finite loss comes back as nan."""
    inputs, targets = data.val_windows(context_length)
    training = model.training
    model.eval()
    try:
        nats = 0.0
        for start in range(0, len(inputs), batch_size):
            x = torch.from_numpy(inputs[start : start + batch_size]).to(device)
            y = torch.from_numpy(targets[start : start + batch_size]).to(device)
            nats += _nats(model, model.hidden(x).flatten(0, -2), y.flatten())
    finally:
        model.train(training)
    count = int(np.count_nonzero(targets != IGNORE))
    if not math.isfinite(nats):
        return Evaluation(math.nan, math.nan)
    return Evaluation(nats / count, nats / math.log(2) / data.val_bytes)


def _nats(model: TransformerLM, hidden: Tensor, targets: Tensor) -> float:
    """The summed cross entropy of ``[N, D]`` hidden states, with no more logits at a time than training holds."""
    rows = CHUNK if worth_chunking(len(targets), vocab_size(model)) else len(targets)
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    sums = [F.cross_entropy(model.logits(x).float(), y, ignore_index=IGNORE, reduction="sum") for x, y in pieces]
    return float(torch.stack(sums).sum())
