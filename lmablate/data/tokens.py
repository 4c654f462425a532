"""Token ids of a text, and the order in which every run reads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmablate.core.errors import DataError
from lmablate.data.tokenizer import Tokenizer, loads

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # a target that is not scored: padding of the last validation window


class TextPart(NamedTuple):
    """A text of a mixture: its `name`, its numbers of training and validation tokens, and the bytes of the latter."""

    name: str
    train_tokens: int
    val_tokens: int
    val_bytes: int

    @property
    def sizes(self) -> dict[str, int]:
        """Return all but the name."""
        return {name: value for name, value in self._asdict().items() if name != "name"}


@dataclass(frozen=True, eq=False)
class TokenData:
    """Training and validation tokens; `eot_id` follows each document.

    `train`: token ids, (n,) uint16 or uint32, memory-mapped. `val`: ids of the validation text, `val_bytes` bytes of UTF-8, the same
    for every tokenizer. `fingerprint` identifies both texts, `tokenizer_fingerprint` the tokenizer. In nats per token of `val`:
    `unigram_val_loss` under the add-one-smoothed counts of `train`, and `entropy_floor`, the least expected loss of any model, if
    known. `texts` are those of a mixture, one after the other in `train` and in `val`; empty for a single text.
    """

    vocab_size: int
    eot_id: int
    train: np.memmap
    val: np.ndarray
    val_bytes: int
    fingerprint: str
    tokenizer_fingerprint: str
    unigram_val_loss: float
    entropy_floor: float | None
    tokenizer_path: Path
    texts: tuple[TextPart, ...]
    _orders: dict[tuple[int, int], dict[int, tuple[np.ndarray, int]]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return loads(self.tokenizer_path.read_text(encoding="utf-8"), self.eot_id)

    def encode(self, text: str) -> list[int]:
        """Return token ids, without an end token."""
        return self.tokenizer.encode([text.encode()])[0].tolist()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; an end token appears as its name."""
        return self.tokenizer.decode(np.asarray(ids, dtype=np.int64).tolist())

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """Return the tokens of training step `step`: int64 (batch_size, context_length + 1); inputs are ``[:, :-1]``, targets ``[:,
        1:]``.

        A pure function of the arguments and the tokens. In every epoch the tokens, taken as a ring, are cut into windows of
        `context_length` from a random offset, and each window is used once, in random order. Offset and order are drawn from
        `data_seed` and the epoch. Windows are counted over steps, so a batch may span two epochs.
        """
        n = len(self.train)
        windows = n // context_length
        if not windows or n <= context_length:
            raise DataError(too_short(n, context_length))
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs = numbers // windows
        starts = np.empty(batch_size, dtype=np.int64)
        orders = self.orders(epochs, windows=windows, n=n, data_seed=data_seed, context_length=context_length)
        for epoch, (order, origin) in orders.items():
            here = epochs == epoch
            starts[here] = origin + order[numbers[here] - epoch * windows] * context_length
        positions = starts[:, None] + np.arange(context_length + 1)
        return np.take(np.asarray(self.train), positions, mode="wrap").astype(np.int64)

    def orders(
        self, epochs: np.ndarray, *, windows: int, n: int, data_seed: int, context_length: int
    ) -> dict[int, tuple[np.ndarray, int]]:
        """Return the order of the windows and the offset of the first for each of `epochs`, an ascending run; recent ones are cached."""
        recent = self._orders.setdefault((data_seed, context_length), {})
        needed = range(int(epochs[0]), int(epochs[-1]) + 1)
        for epoch in [old for old in recent if old not in needed]:
            del recent[epoch]
        for epoch in needed:
            if epoch not in recent:
                recent[epoch] = _order(data_seed, epoch, windows, n)
        return recent

    def val_windows(self, context_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of the validation text, both int64 (windows, context_length). Every token is the target exactly
        once, the first one after an end token; padding of the last window is IGNORED. Each text of a mixture has windows of its own."""
        ends = np.cumsum([text.val_tokens for text in self.texts])[:-1]
        found = [self._windows(val, context_length) for val in np.split(self.val, ends)] if self.texts else []
        if not found:
            return self._windows(self.val, context_length)
        inputs, targets = zip(*found, strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    def _windows(self, val: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(val)
        windows = -(-n // context_length)
        inputs = np.full(windows * context_length, self.eot_id, dtype=np.int64)
        targets = np.full(windows * context_length, IGNORED, dtype=np.int64)
        inputs[1:n] = val[:-1]
        targets[:n] = val
        return inputs.reshape(windows, context_length), targets.reshape(windows, context_length)

    def val_rows(self, context_length: int) -> dict[str, slice]:
        """Return which of the validation windows belong to which text, by its name."""
        if not self.texts:
            return {"": slice(None)}
        ends = np.cumsum([-(-text.val_tokens // context_length) for text in self.texts]).tolist()
        names = [text.name for text in self.texts]
        return {name: slice(*ends_) for name, ends_ in zip(names, itertools.pairwise([0, *ends]), strict=True)}


def inputs_and_targets(rows: Tensor, context_length: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last `context_length` columns of rows from ``batch``. They overlap in a text, ``[..., T + 1]``; a task
    appends its targets to its inputs, ``[..., 2 T]``."""
    assert rows.shape[-1] in (context_length + 1, 2 * context_length)
    return rows[..., :context_length], rows[..., -context_length:]


def share_of(part: Tensor, whole: Tensor) -> Tensor | float:
    """Return the fraction of the scored targets of `whole` ``[..., B, T]`` in `part` ``[..., b, T]``, one per member of a gang. It is
    the weight of a microbatch's mean in the mean of the batch."""
    if part.shape == whole.shape:
        return 1.0
    return (part != IGNORED).sum((-2, -1)).float() / (whole != IGNORED).sum((-2, -1)).float()


def _order(data_seed: int, epoch: int, windows: int, n: int) -> tuple[np.ndarray, int]:
    """The order of the windows and the offset of the first, from random_raw, which numpy promises never to change."""
    bits = np.random.Philox(np.random.SeedSequence(data_seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(windows), kind="stable"), int(bits.random_raw()) % n


def too_short(tokens: int, context_length: int) -> str:
    """Return the message for a text shorter than one window."""
    return (
        f"the text has {tokens} training tokens, and model.context_length={context_length} needs at least {context_length + 1}: "
        "give more text or a shorter context"
    )
