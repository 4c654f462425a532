"""Early looks at a study: after a planned number of pairs, which arms need no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Look(NamedTuple):
    """What may be known at a look: the `number`-th (from 0) of `planned` numbers of pairs.

    `losses`: by arm, the final validation loss of each pair run so far, nats per token; None where it diverged or
    failed. Entries of two arms at one place share their seeds. The first arm, `baseline`, is what the others are held
    against.
    """

    number: int
    planned: tuple[int, ...]
    baseline: str
    losses: Mapping[str, Sequence[float | None]]


# Arms that are decided, each with the reason in words.
Rule = Callable[[Look], Mapping[str, str]]


def never(look: Look) -> Mapping[str, str]:
    """Stops nothing: every planned pair is run."""
    return {}
