"""Scores of every token of a text, read through windows of any length."""

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
from lmablate.evaluate.ready import evaluating

if TYPE_CHECKING:
    from lmablate.model.transformer import TransformerLM

ROWS = 512  # of logits at once


class Scored(NamedTuple):
    """One value for each of the N tokens of a text, in order.

    `nats` is the cross entropy, `confidence` the probability of the most likely token, `correct` whether that was right. `position`
    (from 0) is the index in the window that predicted it, so that ``position + 1`` tokens were read.
    """

    nats: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    position: np.ndarray


class Window(NamedTuple):
    """Inputs ``[start, start + length)``, whose targets from `first` on are counted."""

    start: int
    first: int


def windows(n: int, length: int, stride: int) -> Iterator[Window]:
    """Yield the windows over `n` tokens: of `length`, moving by `stride`, each counting the targets that no earlier one had.

    With ``stride == length`` they do not overlap. Otherwise every token but those of the first window has at least ``length - stride``
    tokens before it (Baevski and Auli 2019, arXiv 1809.10853, section 5; Press et al. 2021, arXiv 2108.12409, appendix B).
    """
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
    """Score `tokens` ``[N]``, each once; the token before the first is `first`, the end of a document.

    A pass has about `pass_tokens` tokens, and at least one window. Dropout is off. The last window is padded on its right, which causal
    attention never reads. With `what`, progress is shown on stderr under that name.
    """
    n = len(tokens)
    text = np.full(n + length + 1, first, dtype=np.int64)  # inputs are text[i], their targets text[i + 1]
    text[1 : n + 1] = tokens
    out = Scored(np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, bool), np.empty(n, np.int32))
    with evaluating(model):
        rows = max(1, pass_tokens // length)
        passes = _passes(windows(n, length, stride), rows)
        for part in progress(passes, what, math.ceil(max(1, n - length + stride) / stride / rows)) if what else passes:
            starts = np.array([window.start for window in part])
            at = starts[:, None] + np.arange(length)
            new = part[0].first
            hidden = model.hidden(torch.from_numpy(text[at]).to(device))[:, new:]
            targets = torch.from_numpy(text[at[:, new:] + 1]).to(device)
            scores = _score(model, hidden.flatten(0, 1), targets.flatten())
            where = at[:, new:].ravel()
            real = where < n  # without the padding
            for column, values in zip(out[:3], scores, strict=True):
                column[where[real]] = values.cpu().numpy()[real]
            out.position[where[real]] = np.tile(np.arange(new, length), len(part))[real]
    return out


def _passes(plan: Iterable[Window], rows: int) -> Iterator[list[Window]]:
    """At most `rows` windows at a time, all of which count equally many targets."""
    for _, alike in itertools.groupby(plan, key=lambda window: window.first):
        while part := list(itertools.islice(alike, rows)):
            yield part


def _score(model: TransformerLM, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, confidence and correctness of ``[N, D]`` hidden states."""
    parts = []
    for states, right in zip(hidden.split(ROWS), targets.split(ROWS), strict=True):
        logits = model.logits(states).float()
        log_z = logits.logsumexp(-1)
        top, guess = logits.max(-1)
        nats = log_z - logits.gather(-1, right[:, None]).squeeze(-1)
        parts.append((nats, (top - log_z).exp().clamp(max=1.0), guess == right))
    nats, confidence, correct = (torch.cat(values) for values in zip(*parts, strict=True))
    return nats, confidence, correct
