"""Define the types of the ``data`` options that are tasks; their values are in ``conf/data``.

A task has no text: its examples are drawn, its tokens are its own, and each example has ``model.context_length``
tokens. Every class tells the number of tokens (`vocabulary`), and why a context length does not fit (`complaint`).
"""

from typing import Annotated, Literal

from pydantic import Field

from lmablate.core.settings import Settings

Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Vocabulary = Annotated[int, Field(ge=4)]
Factors = list[Annotated[float, Field(gt=0)]]

SOURCES = (
    *("mqar", "recall", "induction", "selective_copying", "compression", "memorisation"),
    *("modular", "copy", "reverse", "sort"),
)


class Skill(Settings):
    """Keys of every task. `task_seed` fixes what a run's seeds do not change: validation set, limited training set, and
    facts."""

    task_seed: Whole
    source: str

    @property
    def from_last_state(self) -> bool:
        """Return whether every answer is read from the state of the last token."""
        return False

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids."""
        raise NotImplementedError

    def complaint(self, length: int) -> str | None:
        """Return why examples of `length` tokens cannot be made, or None if they can."""
        raise NotImplementedError

    @property
    def factors(self) -> Factors:
        """Return the further lengths at which accuracy is measured, as multiples of the training length."""
        return []


class DrawnSkill(Skill):
    """A task with drawn examples: `n_val` for validation, `n_examples` for training in epochs (None: every example is new)."""

    n_examples: Positive | None
    n_val: Positive
    vocab_size: Vocabulary

    @property
    def vocabulary(self) -> int:
        return self.vocab_size


class LongerSkill(DrawnSkill):
    """A drawn task that is also evaluated at `length_factors` times the training length."""

    length_factors: Factors | None

    @property
    def factors(self) -> Factors:
        return self.length_factors or []


class MqarData(LongerSkill):
    """Multi-query associative recall (recall.py). Half of `vocab_size` are keys, half are values."""

    source: Literal["mqar"]
    n_pairs: Positive
    power: Annotated[float, Field(gt=0)]
    random_filler: bool

    def complaint(self, length: int) -> str | None:
        keys = self.vocab_size // 2 - 1
        if length % 2:
            return "its examples are made of pairs of tokens: give an even length"
        if 4 * self.n_pairs > length:
            return (
                f"data.n_pairs={self.n_pairs} pairs and their queries take {4 * self.n_pairs} tokens: give at most "
                f"data.n_pairs={length // 4}, or a longer context"
            )
        if self.n_pairs > keys:
            return (
                f"data.vocab_size={self.vocab_size} has {keys} keys, and data.n_pairs={self.n_pairs} need as many different "
                f"ones: give at least data.vocab_size={2 * self.n_pairs + 2}"
            )
        return None


class RecallData(DrawnSkill):
    """In-context recall (recall.py). `noise_vocab_size` of the `vocab_size` tokens are noise, half of the others keys.
    `train_on` selects the next tokens that the training loss counts."""

    source: Literal["recall"]
    noise_vocab_size: Whole
    noise_fraction: Annotated[float, Field(ge=0, lt=1)]
    train_on: Literal["scored", "all"]

    def complaint(self, length: int) -> str | None:
        left = self.vocab_size - self.noise_vocab_size
        if length % 2 or length < 4:
            return "its examples are made of pairs of tokens, and of two at least: give an even length from 4 on"
        if bool(self.noise_vocab_size) != bool(self.noise_fraction):
            return (
                f"data.noise_vocab_size={self.noise_vocab_size} and data.noise_fraction={self.noise_fraction} are noise "
                "together: give both or neither (0)"
            )
        if left < 4:
            return (
                f"data.vocab_size={self.vocab_size} less data.noise_vocab_size={self.noise_vocab_size} leaves {left} tokens for "
                "keys and values: it takes 4, two of each"
            )
        return None


class InductionData(LongerSkill):
    """The token after an earlier trigger (recall.py). The last of `vocab_size` tokens is the trigger."""

    source: Literal["induction"]

    def complaint(self, length: int) -> str | None:
        return "a trigger, its successor and the trigger again take 3 tokens" if length < 3 else None


class SelectiveCopyingData(DrawnSkill):
    """Copying `n_copied` tokens scattered among blanks (sequences.py). Two of `vocab_size` tokens are special."""

    source: Literal["selective_copying"]
    n_copied: Positive

    def complaint(self, length: int) -> str | None:
        if length <= 2 * self.n_copied + 1:
            return (
                f"data.n_copied={self.n_copied} tokens, as many answers and the signal between leave no blank: give at most "
                f"data.n_copied={max(0, length - 2) // 2}, or at least model.context_length={2 * self.n_copied + 2}"
            )
        return None


class CompressionData(DrawnSkill):
    """Rebuilding a random text from the state of its last token (sequences.py). The last of `vocab_size` tokens is special."""

    source: Literal["compression"]

    @property
    def from_last_state(self) -> bool:
        return True

    def complaint(self, length: int) -> str | None:
        return (
            "there must be something to compress before the last token: give 2 tokens at least" if length < 2 else None
        )


class MemorisationData(DrawnSkill):
    """Facts that are the same in every example (memorisation.py). The last of `vocab_size` tokens requests a value."""

    source: Literal["memorisation"]

    def complaint(self, length: int) -> str | None:
        return "its examples are made of pairs of tokens: give an even length" if length % 2 else None


class ModularData(Skill):
    """Arithmetic modulo `modulus` (memorisation.py). `train_fraction` of all equations are for training, the rest for
    validation."""

    source: Literal["modular"]
    modulus: Annotated[int, Field(ge=3)]
    operation: Literal["add", "subtract", "multiply", "divide", "sum_of_squares"]
    train_fraction: Annotated[float, Field(gt=0, lt=1)]

    @property
    def vocabulary(self) -> int:
        return self.modulus + 2

    def complaint(self, length: int) -> str | None:
        if length != 4:
            return "an equation is 4 tokens (a, the operation, b, =): give model.context_length=4"
        if self.operation == "divide" and any(self.modulus % n == 0 for n in range(2, int(self.modulus**0.5) + 1)):
            return f"data.modulus={self.modulus} is not prime, so that not every number can be divided by: give a prime"
        return None


class SequenceData(LongerSkill):
    """A text of 1 to `max_length` items that is copied, reversed or sorted (sequences.py). Two of `vocab_size` tokens
    are special. `max_length` None is as many items as the context holds."""

    source: Literal["copy", "reverse", "sort"]
    max_length: Positive | None

    def longest(self, length: int) -> int:
        """Return the number of items of the longest training example."""
        return length // 2 if self.max_length is None else self.max_length

    def complaint(self, length: int) -> str | None:
        if length < 2 or 2 * self.longest(length) > length:
            return (
                f"data.max_length={self.max_length} items, a signal and the answer take {2 * (self.max_length or 1)} tokens: give "
                f"at most data.max_length={length // 2} (or null), or a longer context"
            )
        return None


SkillSettings = (
    MqarData
    | RecallData
    | InductionData
    | SelectiveCopyingData
    | CompressionData
    | MemorisationData
    | ModularData
    | SequenceData
)
