"""Axis ``norm``: how a vector is normalised.

A norm is built as ``Norm(d_model, **yaml)`` and maps ``[..., D] -> [..., D]``. With `unit_offset` its gain is ``1 + w`` and w starts at
0 (Gemma, arXiv 2403.08295; Nemotron-4, arXiv 2402.16819). ``gain=False`` omits it (Galactica, arXiv 2211.09085). ``n_params(d_model,
settings)`` is the parameter count in closed form; the axis tests compare it with the built module.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lmablate.core.errors import ConfigError
from lmablate.model.kernels import layer_norm, rms_norm
from lmablate.model.primitives import Bias, Gain
from lmablate.model.types import PositiveFloat

# 1 + w is the same function as g. Only rounding differs, near 0, and shows after some steps.
_OFFSET = {"unit_offset": {"trainer.steps": 40}}


class RMSNorm(nn.Module):
    """``g * x / sqrt(mean(x^2) + eps)`` (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    acts_with: ClassVar[Mapping[str, Any]] = _OFFSET

    def __init__(
        self, d_model: int, *, eps: PositiveFloat, gain: Literal[False] | None, unit_offset: Literal[True] | None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.gain = _gain(d_model, gain, unit_offset)

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x, self.eps)
        return y if self.gain is None else self.gain(y)

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return d_model * _has_gain(settings)


class LayerNorm(nn.Module):
    """``g * (x - mean(x)) / sqrt(var(x) + eps) + b``, the variance over D, not D - 1 (Ba et al. 2016, arXiv 1607.06450)."""

    acts_with: ClassVar[Mapping[str, Any]] = _OFFSET

    def __init__(
        self,
        d_model: int,
        *,
        eps: PositiveFloat,
        bias: bool,
        gain: Literal[False] | None,
        unit_offset: Literal[True] | None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.gain = _gain(d_model, gain, unit_offset)
        self.bias = Bias(d_model) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = layer_norm(x, self.eps)
        y = y if self.gain is None else self.gain(y)
        return y if self.bias is None else self.bias(y)

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return d_model * (_has_gain(settings) + settings["bias"])


class NoNorm(nn.Module):
    """The identity ``x``: the baseline without normalisation."""

    normalises: ClassVar[bool] = False

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def n_params(d_model: int, settings: Mapping[str, Any]) -> int:
        return 0


def _gain(width: int, gain: Literal[False] | None, unit_offset: Literal[True] | None) -> Gain | None:
    if gain is None:
        return Gain(width, from_one=unit_offset is not None)
    if unit_offset is not None:
        raise ConfigError(
            "norm.unit_offset=true says how a gain is stored, and norm.gain=false leaves it out: drop one of them"
        )
    return None


def _has_gain(settings: Mapping[str, Any]) -> bool:
    return settings.get("gain") is None
