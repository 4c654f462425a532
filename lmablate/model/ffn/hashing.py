"""Pseudo-random numbers that depend on a text alone: the same for any microbatch, after a resume, and next to other runs."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """A 64-bit word as an int64."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(x: Tensor, by: int) -> Tensor:
    """``x >> by`` of unsigned words."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """Return the output function of SplitMix64 (Steele et al. 2014, doi 10.1145/2714064.2660195, figure 16), word by word, int64."""
    x = x * _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def hash_each(keys: Tensor, n: int, salt: int) -> Tensor:
    """Return a word for each key and each of n items: int64 ``[...] -> [..., n]``."""
    items = mix(torch.arange(1, n + 1, device=keys.device) + (salt << 32))
    return mix(mix(keys)[..., None] ^ items)


def prefix_hash(tokens: Tensor) -> Tensor:
    """Return a hash of the tokens up to each position: int64 ``[..., T]``."""
    place = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    return mix(tokens ^ mix(place)).cumsum(-1)


def uniform(words: Tensor) -> Tensor:
    """Return fp32 in (0, 1), from the upper 24 bits."""
    return (_shifted(words, 40).float() + 0.5) / (1 << 24)


def normal(words: Tensor) -> Tensor:
    """Return standard normal fp32 numbers, by the inverse of their distribution."""
    return 2**0.5 * torch.erfinv(2 * uniform(words) - 1)
