"""The sizes that are timed, and the tokens that every contender reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A model and its batch: `batch` sequences of `context` tokens a step."""

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    context: int
    batch: int
    vocab: int
    note: str
    device: str = "cpu"
    tied: bool = False

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context

    def overrides(self) -> list[str]:
        """Our default architecture at this size, as command-line words; the vocabulary is set apart."""
        return [
            f"model.d_model={self.d_model}",
            f"model.n_layers={self.n_layers}",
            f"model.n_heads={self.n_heads}",
            f"model.context_length={self.context}",
            f"model.tie_embeddings={str(self.tied).lower()}",
            f"trainer.batch_size={self.batch}",
            f"runtime.device={self.device}",
        ]


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("C0", 32, 4, 2, 32, 2, 256, "so small that a step is all overhead"),
        Shape("C1", 128, 4, 4, 64, 12, 65, "nanoGPT's configuration for a CPU"),
        Shape("C2", 256, 4, 4, 128, 8, 512, "3 M parameters"),
        Shape("C3", 384, 6, 6, 256, 4, 65, "nanoGPT's Shakespeare model, with a CPU's batch"),
        Shape("C4", 128, 4, 4, 128, 8, 32_000, "a small model under a large vocabulary"),
        Shape("W512", 512, 4, 8, 256, 4, 512, "width 512, for the share of the matmul peak"),
        Shape("G1", 384, 6, 6, 1024, 32, 50_304, "30 M parameters", "cuda", tied=True),
        Shape("G2", 768, 12, 12, 1024, 16, 50_304, "GPT-2 small's shape", "cuda", tied=True),
    )
}


class Tokens:
    """A random text that every contender reads, the same rows at the same step; what a Trainer of ours asks of its data."""

    def __init__(self, vocab: int, length: int = 1 << 18) -> None:
        steps = np.random.default_rng(0).integers(0, 4, length)  # each token follows one of four: something to learn
        self.tokens = (np.cumsum(steps) % vocab).astype(np.uint16)
        self.vocab_size, self.val_bytes = vocab, 4096

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """int64 ``[batch_size, context_length + 1]``."""
        starts = np.random.default_rng([data_seed, step]).integers(0, len(self.tokens) - context_length - 1, batch_size)
        return self.tokens[starts[:, None] + np.arange(context_length + 1)].astype(np.int64)

    def val_windows(self, context_length: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.tokens[: 4 * context_length + 1].astype(np.int64)
        return rows[:-1].reshape(4, -1), rows[1:].reshape(4, -1)


def solve_width(target: int, count: Callable[[int], int], guess: int) -> int:
    """The FFN width, a multiple of 8 (or of 4 or 2 where that misses by over 1 %), whose `count(width)` is nearest `target`.

    Libraries differ in biases and position tables; the FFN takes up the difference, so that all have our parameters.
    """
    best = guess
    for step in (8, 4, 2):
        at = {width: count(width) for width in (max(step, guess // step * step), 2 * max(step, guess // step * step))}
        (low, n_low), (high, n_high) = at.items()
        exact = low + (target - n_low) * (high - low) / (n_high - n_low)
        below = max(step, int(exact // step) * step)
        best = min((below, below + step), key=lambda width: abs(count(width) - target))
        if abs(count(best) - target) <= 0.01 * target:
            break
    return best
