"""Load checkpoints of transformers, and the package itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lmablate.core.errors import ConfigError
from lmablate.interop.families import FAMILIES

DISCRIMINATOR = "ElectraForPreTraining"  # one of two models (electra.py)


def library() -> Any:
    """Return the transformers package. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise ConfigError(
            "lmablate.interop needs the transformers package: pip install 'lmablate[interop]', or pip install transformers"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from warning: of classes that are tried, those that do not fit would speak."""
    log = library().logging
    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(before)


def load(path: str | Path) -> Any:
    """Return the model of a checkpoint.

    Raises ConfigError unless it has every weight of its class and no other, since transformers would draw missing ones."""
    try:
        kind = _class_of(str(path))
        model, info = kind.from_pretrained(
            str(path), output_loading_info=True, dtype=torch.float32, trust_remote_code=False, weights_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"from_hf: cannot load {path}: {str(error).splitlines()[0]}") from error
    wrong = []
    for kind, problem in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has besides"),
        ("mismatched_keys", "misshapes"),
    ):
        if names := sorted(str(name) for name in info.get(kind) or ()):
            wrong.append(f"{problem} {few(names)}")
    if wrong:
        raise ConfigError(
            f"from_hf: the checkpoint {path} is not one of {type(model).__name__}: it {'; it '.join(wrong)}"
        )
    return model


def _class_of(path: str) -> Any:
    """Return the class that a checkpoint was saved from, if it is supported, else the auto class of causal models."""
    saved = getattr(library().AutoConfig.from_pretrained(path, trust_remote_code=False), "architectures", None) or [""]
    known_here = {family.name for family in FAMILIES} | {DISCRIMINATOR}
    return getattr(library(), saved[0]) if saved[0] in known_here else library().AutoModelForCausalLM


def few(names: Sequence[str], most: int = 6) -> str:
    """Return the first `most` names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
