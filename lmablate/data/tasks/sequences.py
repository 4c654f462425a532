"""Tasks that repeat a text: selectively, from one state, as it was, backwards, or sorted.

Each draws (inputs, targets), int64 ``[n, T]``; targets that are not scored are IGNORED.
"""

from __future__ import annotations

import numpy as np

from lmablate.data.tasks.philox import Draws
from lmablate.data.tasks.recall import Examples
from lmablate.data.tokens import IGNORED
from lmablate.schema.tasks import CompressionData, SelectiveCopyingData, SequenceData


class SelectiveCopying:
    """K tokens among blanks, then a signal and K blanks, at which the tokens are the targets in order (MAD: Poli et al. 2024, arXiv
    2403.17844).

    Each of the T - 2K - 1 blanks before the signal precedes a random token, so that the last of the K tokens is next to the signal. The
    last two of V tokens are the blank and the signal.
    """

    def __init__(self, settings: SelectiveCopyingData) -> None:
        self.settings = settings
        self.chance = 1 / (settings.vocab_size - 2)

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        v, k = self.settings.vocab_size, self.settings.n_copied
        tokens = draws.below(v - 2, n, k)
        blanks = draws.below(k, n, length - 2 * k - 1)
        before = (blanks[:, :, None] <= np.arange(k)).sum(axis=1)  # number of blanks before each token
        inputs = np.full((n, length), v - 2, dtype=np.int64)
        np.put_along_axis(inputs, before + np.arange(k), tokens, axis=1)
        inputs[:, length - k - 1] = v - 1
        targets = np.full((n, length), IGNORED, dtype=np.int64)
        targets[:, length - k :] = tokens
        return inputs, targets


class Compression:
    """Random tokens and a signal; the target at every position is the token there (MAD: Poli et al. 2024, arXiv 2403.17844). The model
    answers from the state at the signal alone (model/output_heads.py)."""

    def __init__(self, settings: CompressionData) -> None:
        self.settings = settings
        self.chance = 1 / (settings.vocab_size - 1)

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        inputs = draws.below(self.settings.vocab_size - 1, n, length)
        inputs[:, -1] = self.settings.vocab_size - 1
        return inputs, inputs.copy()


class Sequence:
    """``x1 ... xm | y1 ... ym``: y is x again, backwards, or sorted (lengths beyond training as in Zhou et al. 2023, arXiv 2310.16028,
    and Kazemnejad et al. 2023, arXiv 2305.19466).

    m is uniform in [1, longest]; the rest of the context is padding and not scored. The targets are y, from the signal on. The last two
    of V tokens are the padding and the signal.
    """

    def __init__(self, settings: SequenceData) -> None:
        self.settings = settings
        self.chance = 1 / (settings.vocab_size - 2)

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        items = 1 + draws.below(self.settings.longest(length), n)
        return self._make(draws, items, length)

    def draw_long(self, draws: Draws, n: int, items: int) -> Examples:
        """Return examples of exactly `items` items."""
        return self._make(draws, np.full(n, items), 2 * items)

    def _make(self, draws: Draws, items: np.ndarray, length: int) -> Examples:
        n, v = len(items), self.settings.vocab_size
        place = np.arange(length)
        m = items[:, None]
        x = draws.below(v - 2, n, length)
        row = np.where(place < m, x, v)  # padding sorts last
        source = np.broadcast_to(place, (n, length))
        match self.settings.source:
            case "reverse":
                source = np.where(place < m, m - 1 - place, place)
            case "sort":
                source = np.argsort(row, axis=1, kind="stable")
        y = np.take_along_axis(row, source, axis=1)
        inputs = np.where(place < m, x, v - 2)
        np.put_along_axis(inputs, m, v - 1, axis=1)
        targets = np.full((n, length), IGNORED, dtype=np.int64)
        answer = place - m  # y_(j + 1) is the target j positions after the signal
        scored = (answer >= 0) & (answer < m)
        moved = np.take_along_axis(y, np.clip(answer, 0, length - 1), axis=1)
        targets[scored] = moved[scored]
        read = scored[:, :-1] & (answer[:, :-1] < m - 1)  # an answer is read one position after its target
        inputs[:, 1:] = np.where(read, targets[:, :-1], inputs[:, 1:])
        return inputs, targets
