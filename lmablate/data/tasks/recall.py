"""Tasks that look up an earlier token. Each draws (inputs, targets), int64 ``[n, T]``; targets that are not scored are IGNORED."""

from __future__ import annotations

import numpy as np

from lmablate.data.tasks.philox import Draws
from lmablate.data.tokens import IGNORED
from lmablate.schema.tasks import InductionData, MqarData, RecallData

Examples = tuple[np.ndarray, np.ndarray]


def gap_weights(space: int, power: float) -> np.ndarray:
    """Return the power law of query distances: ``p(g) ~ (g + 1)^(power - 1)`` for g in [0, space); uniform at 1."""
    weights = np.arange(1, space + 1, dtype=np.float64) ** (power - 1)
    return weights / weights.sum()


class Mqar:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).

    ``k1 v1 k2 v2 ... kP vP`` and then each key once more. Key i is 2 g_i tokens into the rest of the text, where the g_i are different
    and drawn by the power law, and its target is v_i. Between the queries is token 0, or with `random_filler` a random token. Keys are
    1 .. V/2 - 1, values V/2 .. V - 1, different ones within an example.
    """

    def __init__(self, settings: MqarData) -> None:
        self.settings = settings
        self.chance = 1 / (settings.vocab_size - settings.vocab_size // 2)

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        s = self.settings
        half, context = s.vocab_size // 2, 2 * s.n_pairs
        keys = 1 + draws.distinct(n, s.n_pairs, half - 1)
        values = half + draws.distinct(n, s.n_pairs, s.vocab_size - half)
        gaps = draws.weighted(n, s.n_pairs, gap_weights((length - context) // 2, s.power))
        inputs = np.zeros((n, length), dtype=np.int64)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        at = context + 2 * gaps
        np.put_along_axis(inputs, at, keys, axis=1)
        if s.random_filler:
            inputs = np.where(inputs == 0, draws.below(s.vocab_size, n, length), inputs)
        targets = np.full((n, length), IGNORED, dtype=np.int64)
        np.put_along_axis(targets, at, values, axis=1)
        return inputs, targets


class Recall:
    """In-context recall, with noise if `noise_fraction` is above 0 (MAD: Poli et al. 2024, arXiv 2403.17844; the multi-query form of
    its benchmark).

    T / 2 pairs. Each key of an example has one random value. The keys of the pairs are drawn with replacement, and a value is scored if
    its key occurred before. With probability `noise_fraction` a pair is two noise tokens instead, except one pair chosen in advance.
    The last pair has a key that occurred, and its value is scored.
    """

    def __init__(self, settings: RecallData) -> None:
        self.settings = settings
        self.n_keys = (settings.vocab_size - settings.noise_vocab_size) // 2
        self.n_values = settings.vocab_size - settings.noise_vocab_size - self.n_keys
        self.chance = 1 / self.n_values

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        s, pairs = self.settings, length // 2
        value_of = self.n_keys + draws.below(self.n_values, n, self.n_keys)
        keys = draws.below(self.n_keys, n, pairs)
        noise = np.zeros((n, pairs), dtype=bool)
        if s.noise_fraction:
            noise = draws.uniform(n, pairs) < s.noise_fraction
            np.put_along_axis(noise, draws.below(pairs, n, 1), False, axis=1)
            noise[:, -1] = False
            noise[noise[:, :-1].all(axis=1), 0] = False  # at least one key
        seen = np.zeros((n, self.n_keys), dtype=bool)
        repeated = np.zeros((n, pairs), dtype=bool)
        rows = np.arange(n)
        for i in range(pairs - 1):
            repeated[:, i] = seen[rows, keys[:, i]] & ~noise[:, i]
            seen[rows, keys[:, i]] |= ~noise[:, i]
        keys[:, -1] = _one_of(draws, seen)
        repeated[:, -1] = True
        values = np.take_along_axis(value_of, keys, axis=1)
        inputs = np.stack((keys, values), axis=2)
        if s.noise_fraction:
            first = self.n_keys + self.n_values
            inputs = np.where(noise[:, :, None], first + draws.below(s.noise_vocab_size, n, pairs, 2), inputs)
        targets = np.full((n, pairs, 2), IGNORED, dtype=np.int64)
        targets[:, :, 0][repeated] = values[repeated]  # the value is the next token after its key
        return inputs.reshape(n, length), targets.reshape(n, length)


def _one_of(draws: Draws, allowed: np.ndarray) -> np.ndarray:
    """The index of a random True in each row."""
    nth = draws.below(allowed.sum(axis=1), len(allowed))
    return (np.cumsum(allowed, axis=1) <= nth[:, None]).sum(axis=1)


class Induction:
    """The token after an earlier trigger (Fu et al. 2022, arXiv 2212.14052; Gu and Dao 2023, arXiv 2312.00752). Random tokens with a
    trigger at a random position, and the trigger again at the end. There its first successor is the only scored target."""

    def __init__(self, settings: InductionData) -> None:
        self.settings = settings
        self.chance = 1 / (settings.vocab_size - 1)

    def draw(self, draws: Draws, n: int, length: int) -> Examples:
        trigger = self.settings.vocab_size - 1
        inputs = draws.below(trigger, n, length)
        place = draws.below(length - 2, n, 1)
        np.put_along_axis(inputs, place, trigger, axis=1)
        inputs[:, -1] = trigger
        targets = np.full((n, length), IGNORED, dtype=np.int64)
        targets[:, -1:] = np.take_along_axis(inputs, place + 1, axis=1)
        return inputs, targets
