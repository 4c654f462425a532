"""Define the windows through which a text is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmablate.core.errors import ConfigError

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

VALIDATION = "validation"  # name of the text of a run's own val_loss
KEY_PREFIX = "runtime.evaluate_"  # prefix of a run's keys; those of the command line begin with dashes


class Protocol(NamedTuple):
    """Windows of `length` tokens, each `stride` tokens after the one before: sliding if `stride` is less than `length`."""

    length: int
    stride: int


def protocols(times: Sequence[float], stride: int | None, train_length: int, *, keys: str = "--") -> list[Protocol]:
    """Return non-overlapping windows of each of `times` the training length, and with a `stride` also longer sliding
    ones. `keys`: prefix of the keys ``lengths`` and ``stride`` in messages. Raises ConfigError."""
    found: list[Protocol] = []
    for factor in sorted(set(times)):
        length = factor * train_length
        if length < 1 or length != round(length):
            raise ConfigError(
                f"{keys}lengths: {factor:g} times the training length of {train_length} tokens is {length:g}, "
                "and a window holds a whole number of tokens"
            )
        found.append(Protocol(round(length), round(length)))
    if not found:
        raise ConfigError(f"{keys}lengths is empty: give multiples of the training length, e.g. 1,2,4,8,16")
    if stride is None:
        return found
    if not 1 <= stride < found[-1].length:
        raise ConfigError(
            f"{keys}stride={stride}: windows that overlap move on by 1 to {found[-1].length - 1} tokens, fewer than the longest "
            "length asked for"
        )
    sliding = [Protocol(flat.length, stride) for flat in found if stride < flat.length]
    return sorted([*found, *sliding], key=lambda each: (each.length, -each.stride))


def requested_protocols(cfg: RunConfig) -> list[Protocol]:
    """Return the windows that ``runtime.evaluate_lengths`` and ``runtime.evaluate_stride`` request. Raises ConfigError."""
    how = cfg.runtime
    if how.evaluate_lengths is None:
        if how.evaluate_stride is not None:
            raise ConfigError(
                f"{KEY_PREFIX}stride={how.evaluate_stride} has no effect without {KEY_PREFIX}lengths, e.g. {KEY_PREFIX}lengths=[1,2,4,8]"
            )
        return []
    flat = protocols(how.evaluate_lengths, None, cfg.model.context_length, keys=KEY_PREFIX)
    # One stride serves all arms of a sweep, and may be too long for some of their lengths.
    stride = how.evaluate_stride if (how.evaluate_stride or 0) < flat[-1].length else None
    return protocols(how.evaluate_lengths, stride, cfg.model.context_length, keys=KEY_PREFIX)
