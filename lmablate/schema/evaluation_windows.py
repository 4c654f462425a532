"""At which lengths a text is read, and how its windows move on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lmablate.core.errors import ConfigError

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

ASKED = "runtime.evaluate_"  # what the keys of a run begin with; those of the command line begin with dashes


class Protocol(NamedTuple):
    """Windows of `length` tokens that move on by `stride`: non-overlapping where both are equal, else sliding."""

    length: int
    stride: int


def protocols(times: Sequence[float], stride: int | None, train_length: int, *, keys: str = "--") -> list[Protocol]:
    """Non-overlapping windows of each of `times` the training length, and with a `stride` sliding ones too where they are longer.

    Raises ConfigError; `keys` is what the keys ``lengths`` and ``stride`` begin with where the user gave them.
    """
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


def check_reach(cfg: RunConfig, plan: Sequence[Protocol], *, keys: str = "--") -> None:
    """Refuse lengths at which the model of `cfg` has no positions, and models that do not read from left to right."""
    from lmablate.model import components

    if cfg.tokenizer is None:
        raise ConfigError(
            f"{keys}lengths: data={cfg.choices.get('data')} is a task whose examples have a length of their own: only text can be "
            "read through other windows"
        )
    longest, table = max(plan).length, cfg.model.context_length
    if components.target(cfg.posemb, "posemb").bounded and longest > table:
        raise ConfigError(
            f"{keys}lengths: posemb={cfg.choices['posemb']} has positions for {table} tokens, and {longest} are asked for: "
            f"it can be evaluated at the training length alone ({keys}lengths={'[1]' if keys != '--' else '1'})"
        )
    if cfg.objective.kind != "causal":
        raise ConfigError(
            f"{keys}lengths: objective={cfg.objective.kind} does not predict a text from left to right, token by token: "
            "only runs of objective=causal can be evaluated so"
        )


def asked_protocols(cfg: RunConfig) -> list[Protocol]:
    """What ``runtime.evaluate_lengths`` and ``runtime.evaluate_stride`` ask for at the end of training; raises ConfigError."""
    how = cfg.runtime
    if how.evaluate_lengths is None:
        if how.evaluate_stride is not None:
            raise ConfigError(
                f"{ASKED}stride={how.evaluate_stride} has no effect without {ASKED}lengths, e.g. {ASKED}lengths=[1,2,4,8]"
            )
        return []
    flat = protocols(how.evaluate_lengths, None, cfg.model.context_length, keys=ASKED)
    # One stride serves all arms of a sweep, of which some have lengths that it is too long for.
    stride = how.evaluate_stride if (how.evaluate_stride or 0) < flat[-1].length else None
    return protocols(how.evaluate_lengths, stride, cfg.model.context_length, keys=ASKED)


def check_asked(cfg: RunConfig) -> None:
    """Raise ConfigError for an evaluation at the end of training that cannot be made."""
    if plan := asked_protocols(cfg):
        check_reach(cfg, plan, keys=ASKED)
