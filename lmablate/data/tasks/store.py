"""A task instead of a text: examples as a pure function of seed and step, and a fixed validation set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from lmablate.core.errors import DataError
from lmablate.data.tasks.memorisation import Memorisation, Modular
from lmablate.data.tasks.philox import Draws
from lmablate.data.tasks.recall import Examples, Induction, Mqar, Recall
from lmablate.data.tasks.sequences import Compression, SelectiveCopying, Sequence
from lmablate.data.tokenizer import Tokenizer
from lmablate.data.tokens import IGNORED, TokenData
from lmablate.schema.tasks import DrawnSkill, RecallData, SequenceData, Skill

FORMAT = 1  # raised when equal settings give other examples
PER_LENGTH = 256  # examples of each length other than the training length
NO_BYTES = "the tokens of a task are no text and have no bytes, so val_bpb is null"
# Streams of random numbers.
_VALIDATION, _LIMITED, _LENGTHS, _STEP = 3, 4, 5, 6

# Each has `chance`, the accuracy of the best blind guess, and all but the equations draw(draws, n, length).
_TASKS: dict[str, Any] = {
    "mqar": Mqar,
    "recall": Recall,
    "induction": Induction,
    "selective_copying": SelectiveCopying,
    "compression": Compression,
    "memorisation": Memorisation,
    "modular": Modular,
    "copy": Sequence,
    "reverse": Sequence,
    "sort": Sequence,
}


@dataclass(frozen=True, eq=False)
class TaskData(TokenData):
    """TokenData whose rows are examples of a task, without text, bytes and tokenizer. `length` is the number of tokens of an example,
    model.context_length."""

    settings: Skill
    length: int

    @cached_property
    def task(self) -> Any:
        return _TASKS[self.settings.source](self.settings)

    @property
    def chance_accuracy(self) -> float:
        """Return the accuracy of the best blind guess."""
        return self.task.chance

    @cached_property
    def tokenizer(self) -> Tokenizer:
        raise DataError(
            f"data={self.settings.source} is a task with tokens of its own: there is no text to write or to read"
        )

    @cached_property
    def _limited(self) -> Examples | None:
        """The training set of a task with a limited one, both ``[examples, T]``."""
        if isinstance(self.task, Modular):
            return self.task.train
        assert isinstance(self.settings, DrawnSkill)
        n = self.settings.n_examples
        return None if n is None else self._shrunk(self.task.draw(self._draws(_LIMITED), n, self.length))

    def _shrunk(self, examples: Examples) -> Examples:
        dtype = np.int16 if self.vocab_size <= 1 << 15 else np.int32
        return examples[0].astype(dtype), examples[1].astype(dtype)

    @cached_property
    def _held_out(self) -> Examples:
        if isinstance(self.task, Modular):
            return self.task.held_out
        assert isinstance(self.settings, DrawnSkill)
        return self.task.draw(self._draws(_VALIDATION), self.settings.n_val, self.length)

    def _draws(self, *names: int) -> Draws:
        return Draws(self.settings.task_seed, *names)

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """Return the examples of training step `step`: int64 (batch_size, 2 T); inputs are ``[:, :T]``, targets ``[:, T:]``.

        A pure function of the arguments and the settings. A limited training set is read in epochs, each in a random order drawn from
        `data_seed`; else every example is new.
        """
        self._check(context_length)
        if self._limited is None:
            inputs, targets = self.task.draw(Draws(data_seed, _STEP, step), batch_size, context_length)
        else:
            n = len(self._limited[0])
            numbers = np.arange(step * batch_size, (step + 1) * batch_size)
            orders = self.orders(numbers // n, windows=n, n=n, data_seed=data_seed, context_length=context_length)
            rows = np.array([orders[number // n][0][number % n] for number in numbers.tolist()])
            inputs, targets = self._limited[0][rows], self._limited[1][rows]
        if isinstance(self.settings, RecallData) and self.settings.train_on == "all":
            targets = np.concatenate((inputs[:, 1:], np.full((batch_size, 1), IGNORED)), axis=1)
        return np.concatenate((inputs, targets), axis=1).astype(np.int64)

    def val_windows(self, context_length: int) -> Examples:
        """Return inputs and targets of the validation set, both int64 (examples, T); targets that are not scored are IGNORED."""
        self._check(context_length)
        return self._held_out

    def val_lengths(self) -> dict[int, Examples]:
        """Return inputs and targets by measured length, for each of data.length_factors; PER_LENGTH examples each. The length counts
        the items of a text to repeat, else tokens."""
        settings, found = self.settings, {}
        for factor in settings.factors:
            if isinstance(settings, SequenceData):
                items = max(1, round(factor * settings.longest(self.length)))
                found[items] = self.task.draw_long(self._draws(_LENGTHS, items), PER_LENGTH, items)
            else:
                length = 2 * max(1, round(factor * self.length / 2))
                found[length] = self.task.draw(self._draws(_LENGTHS, length), PER_LENGTH, length)
        return dict(sorted(found.items()))

    def row_fields(self) -> dict[str, Any]:
        """Return the task's fields of a result row's block ``data``."""
        return {
            "train_tokens": None if self._limited is None else int(self._limited[0].size),
            "val_bytes": None,
            "val_tokens": int(np.count_nonzero(self._held_out[1] != IGNORED)),
            "unigram_val_loss": None,
            "chance_accuracy": self.chance_accuracy,
            "note": NO_BYTES,
        }

    def _check(self, context_length: int) -> None:
        if context_length != self.length:
            raise DataError(f"this task was made for {self.length} tokens an example, not {context_length}")


def open_task(settings: Skill, context_length: int) -> TaskData:
    """Return the task of `settings`. Raises DataError for a context that its examples do not fit."""
    check_examples(settings, context_length)
    text = json.dumps([FORMAT, settings.model_dump(), context_length], sort_keys=True)
    return TaskData(
        vocab_size=settings.vocabulary,
        eot_id=-1,
        train=cast("np.memmap", np.empty(0, dtype=np.uint16)),
        val=np.empty(0, dtype=np.uint16),
        val_bytes=0,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer_fingerprint="",
        unigram_val_loss=float("nan"),
        entropy_floor=None,
        tokenizer_path=Path("none"),
        texts=(),
        settings=settings,
        length=context_length,
    )


def check_examples(settings: Skill, context_length: int) -> None:
    """Raise DataError if examples of this many tokens are impossible."""
    what = f"data={settings.source} with model.context_length={context_length}"
    if complaint := settings.complaint(context_length):
        raise DataError(f"{what}: {complaint}")
    if isinstance(settings, SequenceData):
        return
    for factor in settings.factors:
        length = 2 * max(1, round(factor * context_length / 2))
        if complaint := settings.complaint(length):
            raise DataError(
                f"{what}: data.length_factors={factor} asks for examples of {length} tokens, and {complaint}"
            )
