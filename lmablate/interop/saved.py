"""Checkpoints of transformers, and the package itself."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lmablate.core.errors import ConfigError
from lmablate.interop.families import FAMILIES

DISCRIMINATOR = "ElectraForPreTraining"  # one of two models (electra.py)


def library() -> Any:
    """The transformers package. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            "lmablate.interop needs the transformers package: pip install 'lmablate[interop]', or pip install transformers"
        ) from None


def load(place: str | Path) -> Any:
    """A checkpoint, which must have every weight of its class and no other: transformers would draw what is missing."""
    try:
        kind = _class_of(str(place))
        model, found = kind.from_pretrained(
            str(place), output_loading_info=True, dtype=torch.float32, trust_remote_code=False, weights_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"from_hf: cannot load {place}: {str(error).splitlines()[0]}") from error
    wrong = []
    for kind, word in (("missing_keys", "lacks"), ("unexpected_keys", "has besides"), ("mismatched_keys", "misshapes")):
        if names := sorted(str(name) for name in found.get(kind) or ()):
            wrong.append(f"{word} {few(names)}")
    if wrong:
        raise ConfigError(
            f"from_hf: the checkpoint {place} is not one of {type(model).__name__}: it {'; it '.join(wrong)}"
        )
    return model


def _class_of(place: str) -> Any:
    """The class that a checkpoint was saved from, where it is one that is known here."""
    saved = getattr(library().AutoConfig.from_pretrained(place, trust_remote_code=False), "architectures", None) or [""]
    known_here = {family.name for family in FAMILIES} | {DISCRIMINATOR}
    return getattr(library(), saved[0]) if saved[0] in known_here else library().AutoModelForCausalLM


def few(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
