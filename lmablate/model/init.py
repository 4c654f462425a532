"""Initial weights: every draw has a key of its own, so what two arms share starts equal."""

import hashlib

import torch
from torch import nn

from lmablate.model.primitives import Matrix


def draw(shape: tuple[int, ...], *, seed: int, key: str) -> torch.Tensor:
    """Standard normal numbers that depend on the seed, the key and the shape, and on nothing drawn before or after."""
    digest = hashlib.sha256(f"{seed}|{key}|{'x'.join(map(str, shape))}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)


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
