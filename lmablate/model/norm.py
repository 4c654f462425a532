"""Axis ``norm``: how a vector is brought to unit scale.

A norm is built as ``Norm(d_model, **yaml)`` and maps ``[..., D] -> [..., D]``. ``n_params(d_model, settings)`` is its
parameter count in closed form, checked against the built module by the axis tests.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lmablate.model.kernels import layer_norm, rms_norm
from lmablate.model.primitives import Bias, Gain
from lmablate.model.types import PositiveFloat


class RMSNorm(nn.Module):
    """``g * x / sqrt(mean(x^2) + eps)`` (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, d_model: int, *, eps: PositiveFloat) -> None:
        super().__init__()
        self.eps = eps
        self.gain = Gain(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain(rms_norm(x, self.eps))

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return d_model


class LayerNorm(nn.Module):
    """``g * (x - mean(x)) / sqrt(var(x) + eps) + b``, the variance over D, not D - 1 (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, d_model: int, *, eps: PositiveFloat, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.gain = Gain(d_model)
        self.bias = Bias(d_model) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.gain(layer_norm(x, self.eps))
        return y if self.bias is None else self.bias(y)

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return d_model * (2 if settings["bias"] else 1)


class NoNorm(nn.Module):
    """``x``: the baseline without normalisation."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return 0
