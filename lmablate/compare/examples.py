"""The tokens on which two runs differ most, each with its context."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from lmablate.compare.scores import Pair

BEFORE, AFTER = 48, 8  # tokens of context shown


class Example(NamedTuple):
    """Token number `at` of the text, in its context; nats of both runs, and ``difference = b - a``."""

    at: int
    document: int
    before: str
    token: str
    after: str
    nats_a: float
    nats_b: float
    difference: float


def strongest(difference: np.ndarray, count: int, apart: int) -> list[int]:
    """Return the indices of the largest differences, largest first.

    No two are closer than `apart` tokens, since neighbours have the same cause."""
    chosen: list[int] = []
    free = np.ones(len(difference), dtype=bool)
    for at in np.argsort(-difference, kind="stable"):
        if len(chosen) == count or difference[at] <= 0:
            break
        if free[at]:
            chosen.append(int(at))
            free[max(0, at - apart + 1) : at + apart] = False
    return chosen


def examples(pair: Pair, document: np.ndarray, count: int) -> tuple[list[Example], list[Example]]:
    """Return the `count` tokens that run a predicts better, and those that run b predicts better."""
    difference = pair.b.nats - pair.a.nats
    apart = BEFORE + AFTER
    better_a, better_b = (strongest(sign * difference, count, apart) for sign in (1, -1))
    return [_example(pair, document, at) for at in better_a], [_example(pair, document, at) for at in better_b]


def _example(pair: Pair, document: np.ndarray, at: int) -> Example:
    tokens, decode = pair.text.tokens, pair.data.decode
    # Context begins with the window and the document.
    start = max(0, at - min(BEFORE, int(pair.a.position[at])))
    a, b = float(pair.a.nats[at]), float(pair.b.nats[at])
    return Example(
        at, int(document[at]), decode(tokens[start:at]), decode(tokens[at : at + 1]), decode(tokens[at + 1 : at + 1 + AFTER]),
        a, b, b - a,
    )  # fmt: skip


def visible(token: str) -> str:
    """Return a token as text, with signs for white space and unprintable tokens."""
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    if token.strip() and token.strip() == token:
        return token
    return "".join(signs.get(letter, letter) for letter in token) or "∅"
