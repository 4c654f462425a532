"""Tasks whose answers are not in the context: memorised, or inferred from other answers."""

from __future__ import annotations

import numpy as np

from lmablate.data.tasks.philox import Draws
from lmablate.data.tasks.recall import Examples
from lmablate.data.tokens import IGNORED
from lmablate.schema.tasks import MemorisationData, ModularData

_STREAM = 2  # their stream of random numbers


class Memorisation:
    """``k ? k' ? ...``: the value of each key, the same in all examples, is the target at its question (MAD: Poli et al. 2024, arXiv
    2403.17844).

    Of the V - 1 tokens other than the question, the first half are keys and the others values, each of at most one key. Keys are drawn
    with replacement.
    """

    def __init__(self, settings: MemorisationData) -> None:
        self.settings = settings
        tokens = settings.vocab_size - 1
        self.n_keys = tokens // 2
        order = Draws(settings.task_seed, _STREAM).order(1, tokens - self.n_keys)[0]
        self.value_of = self.n_keys + order[: self.n_keys]
        self.chance = 1 / self.n_keys

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        keys = draws.below(self.n_keys, n, length // 2)
        inputs = np.full((n, length), self.settings.vocab_size - 1, dtype=np.int64)
        inputs[:, 0::2] = keys
        targets = np.full((n, length), IGNORED, dtype=np.int64)
        targets[:, 1::2] = self.value_of[keys]
        return inputs, targets


class Modular:
    """``a o b = c`` modulo p (Power et al. 2022, arXiv 2201.02177): c is the target at the last of the four tokens. `train_fraction` of
    all equations, drawn once, are for training; the others are the validation set."""

    def __init__(self, settings: ModularData) -> None:
        self.settings = settings
        p = settings.modulus
        self.chance = 1 / p
        a, b = (grid.ravel() for grid in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
        if settings.operation == "divide":
            a, b = a[b > 0], b[b > 0]
        rows = np.stack((a, np.full_like(a, p), b, np.full_like(a, p + 1)), axis=1)
        targets = np.full(rows.shape, IGNORED)
        targets[:, -1] = self._answer(a, b)
        order = Draws(settings.task_seed, _STREAM).order(1, len(rows))[0]
        cut = min(max(1, round(settings.train_fraction * len(rows))), len(rows) - 1)
        self.train = rows[order[:cut]], targets[order[:cut]]
        self.held_out = rows[order[cut:]], targets[order[cut:]]

    def _answer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        p = self.settings.modulus
        match self.settings.operation:
            case "add":
                return (a + b) % p
            case "subtract":
                return (a - b) % p
            case "multiply":
                return a * b % p
            case "divide":
                inverse = np.array([0, *(pow(n, -1, p) for n in range(1, p))])
                return a * inverse[b] % p
        return (a**2 + b**2) % p
