"""Rotary positions for text longer than the model was made for: the same rotation at other angles.

`original_length` is the context, in tokens, that the unscaled angles are good for, `factor` how many times longer the
text is to become. The order of the keys and their meaning follow transformers' ``rope_parameters``.
"""

import math

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.model.posemb.base import PositionShape
from lmablate.model.posemb.rope import Layout, Rotary, RotaryFraction, Spectrum
from lmablate.model.types import PositiveFloat, PositiveInt


class Scaled(Rotary):
    """Base of the scaled options: refuses numbers that leave the angles of the training length as they are."""

    def fill(self) -> None:
        frequencies, amplitude = self.spectrum(self.context_length)
        if amplitude == 1.0 and torch.equal(frequencies, self.plain_frequencies()):
            raise ConfigError(
                f"posemb: {type(self).__name__} with these numbers turns a text of model.context_length={self.context_length} tokens "
                "as plain RoPE does: use posemb=rope, a larger posemb.factor, or a posemb.original_length below the context length"
            )
        super().fill()


class LinearRoPE(Scaled):
    """``w_i / factor``: positions are interpolated (Chen et al. 2023, arXiv 2306.15595, eq. 4)."""

    def __init__(
        self,
        shape: PositionShape,
        *,
        rope_theta: PositiveFloat,
        rotary_fraction: RotaryFraction | None,
        layout: Layout | None,
        factor: PositiveFloat,
    ) -> None:
        super().__init__(shape, rope_theta=rope_theta, rotary_fraction=rotary_fraction, layout=layout)
        self.factor = factor
        self.fill()

    def spectrum(self, length: int) -> Spectrum:
        return Spectrum(self.plain_frequencies() / self.factor, 1.0)


class DynamicRoPE(Scaled):
    """NTK-aware scaling by the length T of the text at hand: the base becomes
    ``rope_theta * (factor T / original_length - (factor - 1))^(W / (W - 2))`` where T exceeds `original_length`
    (described in Peng et al. 2023, arXiv 2309.00071, section 3.1 and appendix B.2)."""

    def __init__(
        self,
        shape: PositionShape,
        *,
        rope_theta: PositiveFloat,
        rotary_fraction: RotaryFraction | None,
        layout: Layout | None,
        factor: PositiveFloat,
        original_length: PositiveInt,
    ) -> None:
        super().__init__(shape, rope_theta=rope_theta, rotary_fraction=rotary_fraction, layout=layout)
        if self.width < 4:
            raise ConfigError(
                f"posemb=rope_dynamic needs at least 4 rotated channels a head, and there are {self.width}: raise model.head_dim"
            )
        self.factor, self.original_length = factor, original_length
        self.fill()

    def spectrum(self, length: int) -> Spectrum:
        stretch = self.factor * max(length, self.original_length) / self.original_length - (self.factor - 1)
        pair = torch.arange(0, self.width, 2, dtype=torch.float64, device="cpu")
        return Spectrum(self.plain_frequencies() * stretch ** (-pair / (self.width - 2)), 1.0)

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return _of_this_length(self, length, device)

    def moves(self, old: int, new: int) -> bool:
        return not torch.equal(self.spectrum(old).frequencies, self.spectrum(new).frequencies)


class YaRN(Scaled):
    """Between ``w_i`` for pairs that turn at least `beta_fast` times within `original_length` and ``w_i / factor`` for
    those that turn at most `beta_slow` times, along a ramp over i; channels are multiplied by
    ``0.1 ln(factor) + 1`` or by `attention_factor` (Peng et al. 2023, arXiv 2309.00071, eqs. 17 to 22)."""

    def __init__(
        self,
        shape: PositionShape,
        *,
        rope_theta: PositiveFloat,
        rotary_fraction: RotaryFraction | None,
        layout: Layout | None,
        factor: PositiveFloat,
        original_length: PositiveInt,
        beta_fast: PositiveFloat,
        beta_slow: PositiveFloat,
        attention_factor: PositiveFloat | None,
    ) -> None:
        super().__init__(shape, rope_theta=rope_theta, rotary_fraction=rotary_fraction, layout=layout)
        if beta_fast <= beta_slow:
            raise ConfigError(f"posemb.beta_fast={beta_fast} must be larger than posemb.beta_slow={beta_slow}")
        if rope_theta <= 1:
            raise ConfigError(f"posemb=rope_yarn needs posemb.rope_theta above 1, got {rope_theta}")
        self.factor, self.original_length = factor, original_length
        self.beta_fast, self.beta_slow, self.attention_factor = beta_fast, beta_slow, attention_factor
        self.fill()

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


class Llama3RoPE(Scaled):
    """``w_i`` for wavelengths below ``original_length / high_freq_factor``, ``w_i / factor`` for those above
    ``original_length / low_freq_factor``, and between them a mean weighted by the inverse wavelength (Llama 3.1, the
    ``llama3`` rule of its released configuration)."""

    def __init__(
        self,
        shape: PositionShape,
        *,
        rope_theta: PositiveFloat,
        rotary_fraction: RotaryFraction | None,
        layout: Layout | None,
        factor: PositiveFloat,
        original_length: PositiveInt,
        low_freq_factor: PositiveFloat,
        high_freq_factor: PositiveFloat,
    ) -> None:
        super().__init__(shape, rope_theta=rope_theta, rotary_fraction=rotary_fraction, layout=layout)
        if high_freq_factor <= low_freq_factor:
            raise ConfigError(
                f"posemb.high_freq_factor={high_freq_factor} must be larger than posemb.low_freq_factor={low_freq_factor}"
            )
        self.factor, self.original_length = factor, original_length
        self.low, self.high = low_freq_factor, high_freq_factor
        self.fill()

    def spectrum(self, length: int) -> Spectrum:
        plain = self.plain_frequencies()
        turns = self.original_length * plain / (2 * math.pi)  # within the original length
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return Spectrum(plain * kept + plain / self.factor * (1 - kept), 1.0)


class LongRoPE(Scaled):
    """``w_i / long_factor_i`` for a text longer than `original_length`, ``w_i / short_factor_i`` for one that is not; each
    a list with a number a pair of channels, or one number for all. Channels are multiplied by
    ``sqrt(1 + ln(s) / ln(original_length))`` with ``s = context_length / original_length`` where that exceeds 1, or by
    `attention_factor` (Ding et al. 2024, arXiv 2402.13753, eq. 2; Phi-3, arXiv 2404.14219)."""

    def __init__(
        self,
        shape: PositionShape,
        *,
        rope_theta: PositiveFloat,
        rotary_fraction: RotaryFraction | None,
        layout: Layout | None,
        original_length: PositiveInt,
        short_factor: PositiveFloat | list[PositiveFloat],
        long_factor: PositiveFloat | list[PositiveFloat],
        attention_factor: PositiveFloat | None,
    ) -> None:
        super().__init__(shape, rope_theta=rope_theta, rotary_fraction=rotary_fraction, layout=layout)
        if original_length < 2:
            raise ConfigError(f"posemb.original_length={original_length}: longrope needs at least 2 tokens")
        for name, factors in (("short_factor", short_factor), ("long_factor", long_factor)):
            if isinstance(factors, list) and len(factors) != self.width // 2:
                raise ConfigError(
                    f"posemb.{name} has {len(factors)} numbers, and a head has {self.width // 2} pairs of rotated channels: "
                    "give one number a pair, or one for all"
                )
        self.original_length, self.attention_factor = original_length, attention_factor
        self.short_factor, self.long_factor = short_factor, long_factor
        self.fill()

    def spectrum(self, length: int) -> Spectrum:
        factors = self.long_factor if length > self.original_length else self.short_factor
        amplitude = self.attention_factor
        if amplitude is None:
            stretch = max(1.0, self.context_length / self.original_length)
            amplitude = math.sqrt(1 + math.log(stretch) / math.log(self.original_length))
        return Spectrum(self.plain_frequencies() / torch.tensor(factors, dtype=torch.float64, device="cpu"), amplitude)

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return _of_this_length(self, length, device)

    def moves(self, old: int, new: int) -> bool:
        return not torch.equal(self.spectrum(old).frequencies, self.spectrum(new).frequencies)


def _of_this_length(part: Rotary, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tables where the angles depend on the length of the text: those kept are of the training length."""
    if length == part.context_length:
        return part.cos, part.sin
    cos, sin = (table.to(device) for table in part._tables(length))
    return cos, sin
