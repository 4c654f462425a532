"""Rotary positions for text longer than the original context: the same rotation at other angles.

`original_length` is the context, in tokens, of the unscaled angles, `factor` the ratio of the new length to it. Keys follow
transformers' ``rope_parameters`` in order and meaning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.rope import Rotary, Spectrum
from lmablate.model.types import PositiveFloat, PositiveInt

# The ramp between fast and slow pairs moves in steps of whole pairs.
_MANY_TURNS = {"original_length": {"posemb.rope_theta": 100.0}}


class Scaled(Rotary):
    """Base class of the scaled options; refuses numbers that leave the angles of the training length unchanged."""

    acts_with: ClassVar[Mapping[str, Any]] = _MANY_TURNS

    def fill(self) -> None:
        frequencies, amplitude = self.spectrum(self.context_length)
        if amplitude == 1.0 and torch.equal(frequencies, self.plain_frequencies()):
            raise ConfigError(
                f"posemb: {type(self).__name__} with these numbers turns a text of model.context_length={self.context_length} tokens "
                "as plain RoPE does: use posemb=rope, a larger posemb.factor, or a posemb.original_length below the context length"
            )
        super().fill()


class ScaledByLength(Scaled):
    """Base class of the options whose angles depend on the length of the text; stored tables are for the training length."""

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if length == self.context_length:
            return self.cos, self.sin
        cos, sin = (table.to(device) for table in self._tables(length))
        return cos, sin

    def moves(self, old: int, new: int) -> bool:
        return not torch.equal(self.spectrum(old).frequencies, self.spectrum(new).frequencies)


@dataclass(eq=False, repr=False, kw_only=True)
class LinearRoPE(Scaled):
    """``w_i / factor``: interpolated positions (Chen et al. 2023, arXiv 2306.15595, eq. 4)."""

    factor: PositiveFloat

    def spectrum(self, length: int) -> Spectrum:
        return Spectrum(self.plain_frequencies() / self.factor, 1.0)


@dataclass(eq=False, repr=False, kw_only=True)
class DynamicRoPE(ScaledByLength):
    """NTK-aware scaling by the length T of the text: where T exceeds `original_length` the base becomes ``rope_theta * (factor T /
    original_length - (factor - 1))^(W / (W - 2))`` (described in Peng et al. 2023, arXiv 2309.00071, section 3.1 and appendix B.2)."""

    factor: PositiveFloat
    original_length: PositiveInt

    def check(self) -> None:
        if self.width < 4:
            raise ConfigError(
                f"posemb=rope_dynamic needs at least 4 rotated channels a head, and there are {self.width}: raise model.head_dim"
            )

    def spectrum(self, length: int) -> Spectrum:
        stretch = self.factor * max(length, self.original_length) / self.original_length - (self.factor - 1)
        pair = torch.arange(0, self.width, 2, dtype=torch.float64, device="cpu")
        return Spectrum(self.plain_frequencies() * stretch ** (-pair / (self.width - 2)), 1.0)


@dataclass(eq=False, repr=False, kw_only=True)
class YaRN(Scaled):
    """A ramp over i from ``w_i``, for pairs with at least `beta_fast` turns within `original_length`, to ``w_i / factor``, for those
    with at most `beta_slow`. Channels are multiplied by ``0.1 ln(factor) + 1`` or by `attention_factor` (Peng et al. 2023, arXiv
    2309.00071, eqs. 17 to 22)."""

    factor: PositiveFloat
    original_length: PositiveInt
    beta_fast: PositiveFloat
    beta_slow: PositiveFloat
    attention_factor: PositiveFloat | None

    acts_with: ClassVar[Mapping[str, Any]] = {**_MANY_TURNS, "beta_fast": {"posemb.original_length": 2000}}

    def check(self) -> None:
        if self.beta_fast < self.beta_slow:
            raise ConfigError(f"posemb.beta_fast={self.beta_fast} must be at least posemb.beta_slow={self.beta_slow}")
        if self.rope_theta <= 1:
            raise ConfigError(f"posemb=rope_yarn needs posemb.rope_theta above 1, got {self.rope_theta}")

    def spectrum(self, length: int) -> Spectrum:
        def pair_that_turns(times: float) -> float:
            turns = self.original_length / (times * 2 * math.pi)
            return self.width * math.log(turns) / (2 * math.log(self.rope_theta))

        low = max(math.floor(pair_that_turns(self.beta_fast)), 0)
        high = min(math.ceil(pair_that_turns(self.beta_slow)), self.width - 1)
        span = high - low or 0.001
        pair = torch.arange(self.width // 2, dtype=torch.float64, device="cpu")
        interpolated = ((pair - low) / span).clamp(0, 1)
        plain = self.plain_frequencies()
        amplitude = self.attention_factor
        if amplitude is None:
            amplitude = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
        return Spectrum(plain / self.factor * interpolated + plain * (1 - interpolated), amplitude)


@dataclass(eq=False, repr=False, kw_only=True)
class Llama3RoPE(Scaled):
    """``w_i`` for wavelengths below ``original_length / high_freq_factor``, ``w_i / factor`` for those above ``original_length /
    low_freq_factor``, and between them a mean weighted by the inverse wavelength (Llama 3.1, the ``llama3`` rule of its released
    configuration)."""

    factor: PositiveFloat
    original_length: PositiveInt
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat

    def check(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"posemb.high_freq_factor={self.high_freq_factor} must be larger than "
                f"posemb.low_freq_factor={self.low_freq_factor}"
            )

    def spectrum(self, length: int) -> Spectrum:
        plain, low, high = self.plain_frequencies(), self.low_freq_factor, self.high_freq_factor
        turns = self.original_length * plain / (2 * math.pi)  # within the original length
        unscaled = ((turns - low) / (high - low)).clamp(0, 1)
        return Spectrum(plain * unscaled + plain / self.factor * (1 - unscaled), 1.0)


@dataclass(eq=False, repr=False, kw_only=True)
class LongRoPE(ScaledByLength):
    """``w_i / long_factor_i`` for a text longer than `original_length`, else ``w_i / short_factor_i``; each is a list with one number
    per pair of channels, or one number for all. Channels are multiplied by ``sqrt(1 + ln(s) / ln(original_length))`` with ``s =
    context_length / original_length`` where that exceeds 1, or by `attention_factor` (Ding et al. 2024, arXiv 2402.13753, eq. 2; Phi-3,
    arXiv 2404.14219)."""

    original_length: PositiveInt
    short_factor: PositiveFloat | list[PositiveFloat]
    long_factor: PositiveFloat | list[PositiveFloat]
    attention_factor: PositiveFloat | None

    # Short factors apply to texts up to the original length.
    acts_with: ClassVar[Mapping[str, Any]] = {
        **_MANY_TURNS,
        "short_factor": {"posemb.original_length": 100, "posemb.short_factor": 2.0},
    }

    def check(self) -> None:
        if self.original_length < 2:
            raise ConfigError(f"posemb.original_length={self.original_length}: longrope needs at least 2 tokens")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if isinstance(factors, list) and len(factors) != self.width // 2:
                raise ConfigError(
                    f"posemb.{name} has {len(factors)} numbers, and a head has {self.width // 2} pairs of rotated channels: "
                    "give one number a pair, or one for all"
                )

    def spectrum(self, length: int) -> Spectrum:
        factors = self.long_factor if length > self.original_length else self.short_factor
        amplitude = self.attention_factor
        if amplitude is None:
            stretch = max(1.0, self.context_length / self.original_length)
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(self.original_length))
        return Spectrum(self.plain_frequencies() / torch.tensor(factors, dtype=torch.float64, device="cpu"), amplitude)
