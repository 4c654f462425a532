"""Text of a random Markov chain with exactly known entropy.

After each symbol the document ends with probability 1 / document_length, or continues with one of the symbol's successors. With one
byte per symbol, tokens and end tokens together are one Markov chain over `n_states` + 1 states. Its entropy rate (Shannon 1948; Cover
and Thomas, theorem 4.2.4) is a lower bound of any model's expected loss:

    H = sum over i of pi_i * H(P_i),    pi = pi P

in nats per token of tokenizer=bytes.
"""

from collections.abc import Iterator

import numpy as np

from lmablate.data.stamp import Stamp
from lmablate.schema.data import SyntheticData

_SYMBOLS = np.frombuffer(bytes(range(ord("!"), ord("~") + 1)), dtype=np.uint8)
_MAX_WEIGHT = 64  # of one successor; integers, so that every machine samples the same text


class Markov:
    """A random chain: `successors` (states, k), and their integer `weights` (states, k)."""

    where = "data=synthetic"
    held_out = None

    def __init__(self, settings: SyntheticData) -> None:
        self.settings = settings
        n, k = settings.n_states, settings.n_successors
        bits = self._bits(0)
        self.successors = np.argsort(bits.random_raw(n * n).reshape(n, n), axis=1, kind="stable")[:, :k]
        self.weights = 1 + (bits.random_raw(n * k).reshape(n, k) % np.uint64(_MAX_WEIGHT)).astype(np.int64)

    def _bits(self, use: int) -> np.random.Philox:
        """Random bits for the chain (0) or the text (1), from random_raw, which numpy promises never to change."""
        return np.random.Philox(np.random.SeedSequence(self.settings.chain_seed, spawn_key=(use,)))

    @property
    def transitions(self) -> np.ndarray:
        """Return P, float64 (states + 1, states + 1); the last state is the end of a document, before any first symbol."""
        n, end = self.settings.n_states, 1 / self.settings.document_length
        matrix = np.zeros((n + 1, n + 1))
        rows = np.arange(n)[:, None]
        matrix[rows, self.successors] = (1 - end) * self.weights / self.weights.sum(axis=1, keepdims=True)
        matrix[:n, n] = end
        matrix[n, :n] = 1 / n
        return matrix

    @property
    def entropy_floor(self) -> float:
        """Return the entropy rate in nats per token of tokenizer=bytes, end tokens included."""
        return entropy_rate(self.transitions)

    def stamp(self) -> Stamp:
        return Stamp(None, settled=True)  # the settings determine the text

    def notices(self) -> list[str]:
        return []

    def documents(self) -> Iterator[bytes]:
        """Yield the documents; all grow in parallel, one symbol at a time, until each has reached its end."""
        s, bits = self.settings, self._bits(1)
        reached = np.cumsum(self.weights, axis=1)
        active = np.arange(s.n_documents)
        state = self._below(bits.random_raw(len(active)), np.full(len(active), s.n_states))
        owners, symbols = [], []
        while len(active):
            owners.append(active)
            symbols.append(state.astype(np.uint8))
            raw = bits.random_raw(len(active))
            going = self._below(raw << np.uint64(32), np.full(len(active), s.document_length)) > 0
            active, state, raw = active[going], state[going], raw[going]
            drawn = self._below(raw, reached[state, -1])
            state = self.successors[state, (drawn[:, None] >= reached[state]).sum(axis=1)]
        owner = np.concatenate(owners)
        text = _SYMBOLS[np.concatenate(symbols)[np.argsort(owner, kind="stable")]].tobytes()
        ends = np.cumsum(np.bincount(owner, minlength=s.n_documents))
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            yield text[start:end]

    @staticmethod
    def _below(raw: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Integers in [0, bound) from the upper 32 bits of `raw`."""
        return ((raw >> np.uint64(32)) * bound.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def entropy_rate(transitions: np.ndarray) -> float:
    """Return nats per step of a Markov chain with one recurrent class; `transitions` is row-stochastic."""
    n = len(transitions)
    # pi (P - I) = 0 and sum pi = 1
    system = np.vstack([transitions.T - np.eye(n), np.ones(n)])
    stationary = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0]
    logs = np.log(transitions, out=np.zeros_like(transitions), where=transitions > 0)
    return float(-stationary @ (transitions * logs).sum(axis=1))
