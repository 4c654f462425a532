"""The option under test, in a small model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmablate.check.small import config, request, scaled_model, tokens_for
from lmablate.config.composition import explicit
from lmablate.core.axes import AXES, options
from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.model.transformer import TransformerLM
from lmablate.schema.run_config import RunConfig

# The key of an axis that holds its class or function, where it is not the axis itself.
_INSIDE = {"activation": "fn", "stability": "qk_norm"}


class Subject:
    """An option of an axis, with other overrides. Checks get configurations and fresh models from it."""

    def __init__(self, axis: str, option: str, overrides: Sequence[str] = ()) -> None:
        self.axis, self.option, self.overrides = axis, option, tuple(overrides)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """Return the request as plain values; not to be changed."""
        return request(f"{self.axis}={self.option}", *self.overrides)

    @cached_property
    def cfg(self) -> RunConfig:
        """Return the small configuration with the option."""
        return self.config()

    def config(self, keys: Mapping[str, Any] | None = None, **chosen: str) -> RunConfig:
        """Return the configuration with other values of `keys` (dotted paths), and other options, ``norm_position="sandwich"``.

        Raises ConfigError if they do not fit together."""
        raw = copy.deepcopy(self.raw)
        for group, option in chosen.items():
            raw[group] = request(f"{group}={option}")[group]
            raw["choices"][group] = option
        for path, value in (keys or {}).items():
            put(raw, path, value)
        return config(raw=raw, given=dict(keys or {}))

    def with_biases(self) -> RunConfig:
        """Return the configuration with biases if the option admits them."""
        try:
            return self.config({"model.bias": True})
        except ConfigError:
            return self.cfg

    def model(self, scale: float = 1.0, cfg: RunConfig | None = None) -> TransformerLM:
        """Return a fresh model whose matrices are `scale` times larger than at initialisation."""
        return scaled_model(cfg or self.cfg, scale)

    def tokens(self, rows: int = 3) -> torch.Tensor:
        """Return tokens of the small text: int64 ``[rows, T]``."""
        return tokens_for(self.cfg, rows)[:, :-1]

    def siblings(self) -> list[str]:
        """Return the other options of the axis, including those of the current folder."""
        return [option for option in options(self.axis) if option != self.option]

    def with_option(self, sibling: str) -> Subject:
        """Return the subject with another option of the axis in the same model."""
        kept = [one for one in self.overrides if not one.lstrip("+").startswith(f"{self.axis}.")]
        return Subject(self.axis, sibling, kept)

    def target(self) -> Any:
        """Return the class or function of the option; None if it has no code of its own."""
        node = self.raw[self.axis]
        if inside := _INSIDE.get(self.axis):
            node = node[inside] or {}
        return components.target(node, self.axis) if "_target_" in node else None

    def where(self) -> str:
        """Return the class of the option and its file and line."""
        target = self.target()
        if target is None:
            return f"conf/{self.axis}/{self.option}.yaml"
        name = f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else str(target)
        try:
            path, line = inspect.getsourcefile(target), inspect.getsourcelines(target)[1]
        except (TypeError, OSError):
            return name
        return f"{name} ({_near(path)}, line {line})"


def _near(path: str | None) -> str:
    """Return a path relative to the current folder if it is inside."""
    resolved = Path(path or "")
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def get(raw: dict[str, Any], path: str) -> Any:
    """Return the value of a dotted path."""
    for key in path.split("."):
        raw = raw[key]
    return raw


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set the value of a dotted path."""
    *way, last = path.split(".")
    node = get(raw, ".".join(way)) if way else raw
    node[last] = value


def subject_of(overrides: Sequence[str]) -> Subject:
    """Return the subject of a command line: its first axis, in a model with the other overrides. Raises ConfigError."""
    given = explicit(overrides)
    if not (axes := [key for key in given if key in AXES]):
        raise ConfigError(
            "no option to check: name one of an axis, e.g. norm=rms or attention=mine --trust mypackage; "
            f"the axes are {', '.join(AXES)}"
        )
    axis, option = axes[0], given[axes[0]]
    if many := [f"{key}={value}" for key, value in given.items() if "," in str(value) and "[" not in str(value)]:
        raise ConfigError(f"{many[0]}: check takes one option at a time; run the command once for each")
    rest = [one for one in overrides if one.lstrip("+").partition("=")[0] != axis]
    return Subject(axis, str(option), rest)
