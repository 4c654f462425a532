"""Ten options with a fault each, of the kinds that a first variant has."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lmablate.model.attention import MultiHead
from lmablate.model.norm import RMSNorm
from lmablate.model.posemb import PosEmb
from lmablate.model.primitives import Gain, Linear


class Norm(RMSNorm):
    """What the broken norms have in common."""

    def __init__(self, d_model: int, *, eps: float) -> None:
        super().__init__(d_model, eps=eps, gain=None, unit_offset=None)


class Ahead(MultiHead):
    """Reads the next token."""

    def forward(self, x, positions):
        return super().forward(x + 0.1 * x.roll(-1, -2), positions)


class AheadByChoice(MultiHead):
    """Tells a token, without a gradient, whether a later one is large."""

    def forward(self, x, positions):
        return super().forward(x * (1 + x.detach().amax((-2, -1), keepdim=True)), positions)


class DeadKey(RMSNorm):
    """Accepts a key that nothing reads."""

    def __init__(self, d_model: int, *, eps: float, strength: float) -> None:
        super().__init__(d_model, eps=eps, gain=None, unit_offset=None)


class Chance(Norm):
    """Draws in its forward pass."""

    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * torch.rand(()))


class Miscounted(MultiHead):
    """Has a matrix that its closed form leaves out."""

    def __init__(self, shape, *, layer: int, scale: float | None) -> None:
        super().__init__(shape, layer=layer, scale=scale)
        self.gate_proj = Linear(shape.d_model, shape.d_model, bias=False)

    def forward(self, x, positions):
        return super().forward(x, positions) * self.gate_proj(x).sigmoid()

    @classmethod
    def matmul_params(cls, shape, settings):
        return super().matmul_params(shape, settings)

    @classmethod
    def n_bias_and_gain_params(cls, shape, settings):
        return super().n_bias_and_gain_params(shape, settings)


class OneForAll(Norm):
    """Has one gain for all layers."""

    gains: ClassVar[dict[torch.device, Gain]] = {}

    def __init__(self, d_model: int, *, eps: float) -> None:
        super().__init__(d_model, eps=eps)
        self.gain = self.gains.setdefault(self.gain.weight.device, self.gain)


class OneStorage(OneForAll):
    """Has a gain for each layer, and the numbers of all are the same ones."""

    gains: ClassVar[dict[torch.device, Gain]] = {}

    def __init__(self, d_model: int, *, eps: float) -> None:
        super().__init__(d_model, eps=eps)
        shared, self.gain = self.gain, Gain(d_model, from_one=False)
        self.gain.weight.data = shared.weight.data


class Stale(PosEmb):
    """Keeps a table of the longest text so far, and its rows hang on that length."""

    table: Tensor | None = None

    def embed(self, x):
        length = x.shape[-2]
        if self.table is None or len(self.table) < length:
            self.table = torch.linspace(-1, 1, length)[:, None]
        return x + self.table[:length]


class Drawn(Norm):
    """Starts from numbers that no seed sets."""

    def __init__(self, d_model: int, *, eps: float) -> None:
        super().__init__(d_model, eps=eps)
        numbers = torch.from_numpy(np.random.default_rng().random(d_model)).float()
        self.gain.weight.data = numbers.to(self.gain.weight.device)


class InPlace(Norm):
    """Centres its input where it stands."""

    def forward(self, x):
        with torch.no_grad():
            x -= x.mean(-1, keepdim=True)
        return super().forward(x)


class Half(Norm):
    """Returns another dtype than it is given."""

    def forward(self, x):
        return super().forward(x).bfloat16()


class Squeezed(MultiHead):
    """Loses an axis of one token."""

    def forward(self, x, positions):
        return super().forward(x, positions).squeeze(-2)


class Batch(Norm):
    """Takes its mean over the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))
