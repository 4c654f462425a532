"""Every token of a text under a model that reads it through windows of any length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmablate.core.console import progress
from lmablate.core.errors import ConfigError

if TYPE_CHECKING:
    from lmablate.model.transformer import TransformerLM

ROWS = 512  # of logits at a time


class Scored(NamedTuple):
    """One value for each of the N tokens of a text, in its order: `nats` of cross entropy; the probability of the most
    likely token (`confidence`) and whether it was the right one; and `position`, the place (from 0) in the window that
    predicted it, so that ``position + 1`` tokens were read."""

    nats: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    position: np.ndarray


class Window(NamedTuple):
    """Inputs ``[start, start + length)``, of which the last targets from `first` on are counted."""

    start: int
    first: int


def windows(n: int, length: int, stride: int) -> Iterator[Window]:
    """How `n` tokens are read: windows of `length` that move on by `stride`, each counting the targets that no earlier one
    had. With ``stride == length`` they do not overlap; else every token but those of the first window has at least
    ``length - stride`` tokens before it (Baevski and Auli 2019, arXiv 1809.10853, section 5; Press et al. 2021, arXiv
    2108.12409, appendix B)."""
    if not 1 <= stride <= length:
        raise ConfigError(f"--stride {stride}: windows of {length} tokens move on by 1 to {length} tokens")
    yield Window(0, 0)
    for start in range(stride, n - length + stride, stride):
        yield Window(start, length - stride)


@torch.no_grad()
def score(
    model: TransformerLM,
    tokens: np.ndarray,
    *,
    first: int,
    length: int,
    stride: int,
    pass_tokens: int,
    device: str,
    what: str = "",
) -> Scored:
    """Score `tokens` ``[N]``, each once; what the model reads before the first is `first`, the end of a document.

    A pass holds about `pass_tokens` tokens, and a window at least. Dropout is off. The last window is filled up on its
    right, which causal attention never sees. With `what`, progress is said on stderr under that name.
    """
    n = len(tokens)
    text = np.full(n + length + 1, first, dtype=np.int64)  # inputs are text[i], their targets text[i + 1]
    text[1 : n + 1] = tokens
    out = Scored(np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, bool), np.empty(n, np.int32))
    training = model.training
    model.eval()
    try:
        rows = max(1, pass_tokens // length)
        passes = _passes(windows(n, length, stride), rows)
        for part in progress(passes, what, math.ceil(max(1, n - length + stride) / stride / rows)) if what else passes:
            starts = np.array([window.start for window in part])
            at = starts[:, None] + np.arange(length)
            new = part[0].first
            hidden = model.hidden(torch.from_numpy(text[at]).to(device))[:, new:]
            targets = torch.from_numpy(text[at[:, new:] + 1]).to(device)
            found = _score(model, hidden.flatten(0, 1), targets.flatten())
            where = at[:, new:].ravel()
            kept = where < n
            for have, values in zip(out[:3], found, strict=True):
                have[where[kept]] = values.cpu().numpy()[kept]
            out.position[where[kept]] = np.tile(np.arange(new, length), len(part))[kept]
    finally:
        model.train(training)
    return out


def _passes(plan: Iterable[Window], rows: int) -> Iterator[list[Window]]:
    """At most `rows` windows at a time, all of which count as many targets."""
    for _, alike in itertools.groupby(plan, key=lambda window: window.first):
        while part := list(itertools.islice(alike, rows)):
            yield part


def _score(model: TransformerLM, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, confidence and rightness of ``[N, D]`` hidden states."""
    parts = []
    for states, right in zip(hidden.split(ROWS), targets.split(ROWS), strict=True):
        logits = model.logits(states).float()
        log_z = logits.logsumexp(-1)
        top, guess = logits.max(-1)
        nats = log_z - logits.gather(-1, right[:, None]).squeeze(-1)
        parts.append((nats, (top - log_z).exp().clamp(max=1.0), guess == right))
    nats, confidence, correct = (torch.cat(values) for values in zip(*parts, strict=True))
    return nats, confidence, correct
