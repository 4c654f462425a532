"""A text without order, as a control: whatever a model reads, the next token is drawn from the text's token frequencies."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from lmablate.data.tasks.philox import Draws
from lmablate.data.tokens import TokenData


@dataclasses.dataclass(frozen=True, eq=False)
class ShuffledTokens(TokenData):
    """The tokens of a text in random order (``data.shuffle_tokens=true``).

    `entropy_floor` is the entropy of the validation text's token frequencies, in nats per token: no model that does not see
    its targets reaches less."""

    def batch(self, step: int, *, data_seed: int, batch_size: int, context_length: int) -> np.ndarray:
        """Return tokens from random places of the text, int64 (batch_size, context_length + 1)."""
        places = Draws(data_seed, step).below(len(self.train), batch_size, context_length + 1)
        return np.asarray(self.train)[places].astype(np.int64)


def shuffled(data: TokenData) -> ShuffledTokens:
    """Return `data` without order, as another text: with its own fingerprint, and its validation tokens in one random order."""
    counts = np.bincount(data.val, minlength=data.vocab_size)
    share = counts[counts > 0] / counts.sum()
    kept = {one.name: getattr(data, one.name) for one in dataclasses.fields(data) if one.init}
    return ShuffledTokens(
        **kept
        | {
            "val": data.val[Draws(0).order(1, len(data.val))[0]],
            "fingerprint": hashlib.sha256(f"shuffled|{data.fingerprint}".encode()).hexdigest(),
            "entropy_floor": float(-(share * np.log(share)).sum()),
        }
    )
