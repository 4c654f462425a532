"""Interim looks at a study: after a planned number of pairs, decide which arms need no more runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lmablate.stats.sequential import look_rule
from lmablate.sweeper.settings import StudySettings, expand_arms


class Look(NamedTuple):
    """The data available at a look: the `number`-th (from 0) of `planned` numbers of pairs.

    `losses`: by arm, the final validation loss of each pair run so far, nats per token; None where it diverged or
    failed. Entries of two arms at one index share their seeds. The other arms are compared with the first, `baseline`."""

    number: int
    planned: tuple[int, ...]
    baseline: str
    losses: Mapping[str, Sequence[float | None]]


# Maps each decided arm to its reason.
StoppingRule = Callable[[Look], Mapping[str, str]]


def never(look: Look) -> Mapping[str, str]:
    """Stop no arm: run every planned pair."""
    return {}


def rule_of(settings: StudySettings) -> StoppingRule:
    """Return the stopping rule of a study, at a two-sided 5 % for all its arms together.

    Without `sweep.looks` nothing stops."""
    if not settings.looks:
        return never
    return look_rule(settings.look_rule or "obrien_fleming", comparisons=max(1, len(expand_arms(settings)) - 1))
