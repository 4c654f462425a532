"""Initial weights: every draw has a key of its own, so what two arms share starts equal.

The matrices of the primitives are drawn here (`initialise`). What a part of a user's own draws in its constructor, by any module
or function of torch, keeps its distribution and is drawn by its place (`drawn`): layer and branch, the operation and its shape,
and its turn among those that are alike.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmablate.model.primitives import Matrix


def seed_of(*words: object) -> int:
    """A seed of 63 bits from whatever names a draw."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, words)).encode()).digest()[:8], "big") >> 1


def draw(shape: tuple[int, ...], *, seed: int, key: str) -> Tensor:
    """Standard normal numbers that depend on the seed, the key and the shape, and on nothing drawn before or after."""
    generator = torch.Generator().manual_seed(seed_of(seed, key, "x".join(map(str, shape))))
    return torch.randn(shape, generator=generator)


@contextmanager
def drawn(seed: int, scope: str) -> Iterator[None]:
    """Have whatever is drawn inside depend on the seed, the scope ("3.attention") and its own place; the generators of torch,
    numpy and Python are as before afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs is the one a part draws from
    seed_everything(seed_of(seed, scope, "constructor"), torch_too=False)
    try:
        with torch.random.fork_rng(devices=[]), _Placed(seed, scope):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def seed_everything(seed: int, *, torch_too: bool = True) -> None:
    """Seed the generators that code draws from when it names none."""
    if torch_too:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


class _Placed(TorchDispatchMode):
    """Seeds torch's generator before each random operation, by what it is and how often its like has been seen."""

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


@torch.no_grad()
def initialise(
    part: nn.Module, scope: str, *, seed: int, std: float, out_proj_scale: float, xavier_gain: float | None = None
) -> None:
    """Fill the matrices of `part` with N(0, std^2), those of a branch's last matrix, ``out_proj``, times `out_proj_scale`.

    With `xavier_gain` the variance is Xavier's instead, ``2 / (rows + columns)``, and all are smaller by that gain but those
    that only make attention scores, which a part names in ``score_only`` (DeepNet, arXiv 2203.00555, figure 2).

    `scope` is the layer and branch ("3.ffn"), given before any wrapper, so that the draws of a branch do not depend on
    where its norm stands. Gains stay 1 and biases 0. Nothing is drawn on the meta device.
    """
    for name, module in part.named_modules():
        if isinstance(module, Matrix) and not module.weight.is_meta:
            shape = tuple(module.weight.shape)
            if xavier_gain is None:
                scale = std * (out_proj_scale if name.split(".")[-1] == "out_proj" else 1.0)
            else:
                scale = (2 / sum(shape[-2:])) ** 0.5 * (1.0 if name in getattr(part, "score_only", ()) else xavier_gain)
            if len(shape) == 2:
                numbers = draw(shape, seed=seed, key=f"{scope}/{name}")
            else:  # the first experts of many start like those of few
                numbers = torch.stack([draw(shape[1:], seed=seed, key=f"{scope}/{name}/{e}") for e in range(shape[0])])
            module.weight.copy_(numbers * scale)
