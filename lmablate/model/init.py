"""Initial weights: every draw has its own key, so what two arms share starts equal.

`initialise` draws the matrices of the primitives. Draws in the constructor of a user-defined part, by any torch module or function,
keep their distribution. They are seeded by their place (`seeded_draws`): layer and branch, operation and shape, and the count of
earlier draws of that kind.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmablate.model.primitives import Embedding, Matrix


def seed_of(*key: object) -> int:
    """Return a 63-bit seed from the values that identify a draw."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def draw(shape: tuple[int, ...], *, seed: int, key: str) -> Tensor:
    """Return standard normal numbers that depend on seed, key and shape alone, not on earlier or later draws."""
    generator = torch.Generator().manual_seed(seed_of(seed, key, "x".join(map(str, shape))))
    return torch.randn(shape, generator=generator)


@contextmanager
def seeded_draws(seed: int, scope: str) -> Iterator[None]:
    """Seed the draws inside the context by `seed`, `scope` ("3.attention") and their own place. The generators of torch, numpy and
    Python are restored afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - a part may draw from the global generator
    seed_everything(seed_of(seed, scope, "constructor"), torch_too=False)
    try:
        with torch.random.fork_rng(devices=[]), _SeededDraws(seed, scope):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def seed_everything(seed: int, *, torch_too: bool = True) -> None:
    """Seed the global generators of torch, numpy and Python."""
    if torch_too:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


class _SeededDraws(TorchDispatchMode):
    """Seeds torch's generator before each random operation, by the operation and the number of equal ones before it."""

    def __init__(self, seed: int, scope: str) -> None:
        super().__init__()
        self.seed, self.scope = seed, scope
        self.turns: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            shapes = [
                tuple(x.shape) if isinstance(x, Tensor) else x for x in args if isinstance(x, Tensor | list | int)
            ]
            key = f"{func}{shapes}"
            torch.default_generator.manual_seed(seed_of(self.seed, self.scope, key, self.turns[key]))
            self.turns[key] += 1
        return func(*args, **(kwargs or {}))


class Spread(NamedTuple):
    """The standard deviations of the draws: a number, or a rule with a factor, as in ``model.init_std``.

    ``fan_in`` is ``1 / sqrt(columns)``: a product of inputs of unit size then has unit size at any width (LeCun et al. 1998, "Efficient
    BackProp", equation 16). ``unit`` gives token rows that enter the residual stream with unit size, ``1 / embedding_scale``; where they
    are tied to the head it is ``fan_in``, which gives logits of unit size. By a rule, rows of positions and segments, which nothing
    scales, have the size at which token rows enter.
    """

    matrices: float | str
    rows: float | str  # of tokens, positions and segments
    row_scale: float  # factor of the token rows in the model
    tied: bool  # to the head
    added: bool = False  # to token rows: the part is no token table
    head: float | str | None = None  # the matrix of the logits; None: as the other matrices

    def of(self, module: Matrix) -> float:
        """Return the standard deviation of the entries of `module`."""
        rows = isinstance(module, Embedding) and module.fan_in is None
        own = self.head if module.gives_logits else None
        rule = self.rows if rows else self.matrices if own is None else own
        if not isinstance(rule, str):
            return rule
        factor, _, word = rule.rpartition("*")
        columns = getattr(module, "fan_in", None) or module.weight.shape[-1]
        size = 1 / self.row_scale if word == "unit" and rows and not self.tied else columns**-0.5
        return float(factor or 1) * size * (self.row_scale if rows and self.added else 1.0)


@torch.no_grad()
def initialise(
    part: nn.Module, scope: str, *, seed: int, std: Spread, out_proj_scale: float, xavier_gain: float | None = None
) -> None:
    """Fill the matrices of `part` with normal draws; the last matrix of a branch, ``out_proj``, is scaled by `out_proj_scale`.

    With `xavier_gain` the variance is Xavier's instead, ``2 / (rows + columns)``. Matrices are then scaled by the gain, except those
    that only produce attention scores, which a part names in ``score_only`` (DeepNet, arXiv 2203.00555, figure 2).

    `scope` is layer and branch ("3.ffn"), fixed before any wrapper, so that a branch's draws do not depend on its norm position. Gains
    stay 1 and biases 0. Nothing is drawn on the meta device.
    """
    for name, module in part.named_modules():
        if isinstance(module, Matrix) and not module.weight.is_meta:
            shape = tuple(module.weight.shape)
            if xavier_gain is None:
                scale = std.of(module) * (out_proj_scale if name.split(".")[-1] == "out_proj" else 1.0)
            else:
                scale = (2 / sum(shape[-2:])) ** 0.5 * (1.0 if name in getattr(part, "score_only", ()) else xavier_gain)
            if len(shape) == 2:
                numbers = draw(shape, seed=seed, key=f"{scope}/{name}")
            else:  # expert by expert, so that arms with more experts share the first ones
                numbers = torch.stack([draw(shape[1:], seed=seed, key=f"{scope}/{name}/{e}") for e in range(shape[0])])
            module.weight.copy_(numbers * scale)
