"""Random numbers of the tasks, from ``random_raw`` of a counter-based generator, which numpy promises never to change."""

from __future__ import annotations

import numpy as np


class Draws:
    """A random stream named by integers, such as (task, seed, step): equal names give equal numbers."""

    def __init__(self, seed: int, *names: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=names))

    def _raw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)

    def below(self, bound: int | np.ndarray, *shape: int) -> np.ndarray:
        """Return integers in [0, bound), int64 of `shape`; `bound` broadcasts."""
        high = self._raw(shape) >> np.uint64(32)
        return (high * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return float64 in (0, 1)."""
        return ((self._raw(shape) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def order(self, rows: int, n: int) -> np.ndarray:
        """Return a random permutation of 0 .. n - 1 in each row."""
        return np.argsort(self._raw((rows, n)), axis=1, kind="stable")

    def distinct(self, rows: int, k: int, bound: int) -> np.ndarray:
        """Return `k` different integers of [0, bound) in each row, in random order (Floyd's algorithm: k draws per row)."""
        chosen = np.empty((rows, k), dtype=np.int64)
        for i, top in enumerate(range(bound - k, bound)):
            drawn = self.below(top + 1, rows)
            taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
            chosen[:, i] = np.where(taken, top, drawn)
        return np.take_along_axis(chosen, self.order(rows, k), axis=1)

    def weighted(self, rows: int, k: int, weights: np.ndarray) -> np.ndarray:
        """Return `k` different indices in each row, drawn without replacement in proportion to `weights`. Exponential clocks with these
        rates ring in that order."""
        clocks = -np.log(self.uniform(rows, len(weights))) / weights
        return np.argsort(clocks, axis=1, kind="stable")[:, :k]
