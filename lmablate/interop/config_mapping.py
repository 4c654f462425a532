"""Two-way mappings between a transformers configuration and a model spec.

A lens reads part of our spec (model_spec.py) from a configuration and writes it as keyword arguments of one. A family is a
list of lenses. Reading an option that we do not have raises ConfigError. A lens leaves out what it cannot write; reading the
written configuration back then shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmablate.core.errors import ConfigError
from lmablate.interop.model_spec import Spec

PLAIN_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu2": "relu2",
    "identity": "linear",
}
GATED_ACTIVATIONS = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_pytorch_tanh",
    "reglu": "relu",
    "glu": "sigmoid",
    "bilinear": "linear",
}
_SYNONYMS = {
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}


def refuse(config: Any, attribute: str, value: Any, allowed: str) -> ConfigError:
    """Return the ConfigError for a value of a transformers attribute that no option of ours expresses."""
    return ConfigError(
        f"from_hf: {type(config).__name__}.{attribute}={value!r} cannot be expressed here: allowed is {allowed}"
    )


class Lens(Protocol):
    """A two-way mapping of a part of a configuration. `theirs`: the attributes of the configuration that it covers."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    def read(self, config: Any) -> dict[str, Any]: ...

    def write(self, spec: Spec) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Fixed:
    """Entries of the spec that every model of a class has."""

    spec: Spec
    theirs: tuple[str, ...] = ()

    def read(self, config: Any) -> dict[str, Any]:
        return dict(self.spec)

    def write(self, spec: Spec) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Keys:
    """Entries of the spec stored unchanged in an attribute; None stands for the default."""

    names: Mapping[str, str]

    @property
    def theirs(self) -> tuple[str, ...]:
        return tuple(self.names.values())

    def read(self, config: Any) -> dict[str, Any]:
        values = {ours: getattr(config, theirs) for ours, theirs in self.names.items()}
        return {key: value for key, value in values.items() if value is not None}

    def write(self, spec: Spec) -> dict[str, Any]:
        return {theirs: spec[ours] for ours, theirs in self.names.items() if ours in spec}


@dataclass(frozen=True)
class Only:
    """Attributes with a single supported value, since other values change the computation in a way that we do not have."""

    values: Mapping[str, Any]

    @property
    def theirs(self) -> tuple[str, ...]:
        return tuple(self.values)

    def read(self, config: Any) -> dict[str, Any]:
        for name, value in self.values.items():
            if (got := getattr(config, name, value)) != value:
                raise refuse(config, name, got, repr(value))
        return {}

    def write(self, spec: Spec) -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class Via:
    """A mapping by two functions, `reader` and `writer`."""

    theirs: tuple[str, ...]
    reader: Callable[[Any], dict[str, Any]]
    writer: Callable[[Spec], dict[str, Any]]

    def read(self, config: Any) -> dict[str, Any]:
        return self.reader(config)

    def write(self, spec: Spec) -> dict[str, Any]:
        return self.writer(spec)


@dataclass(frozen=True)
class Activation:
    """The pointwise function by its transformers name. `options` maps our options to these names."""

    attribute: str
    options: Mapping[str, str] = field(default_factory=lambda: PLAIN_ACTIVATIONS)
    synonyms: Mapping[str, str] = field(default_factory=lambda: _SYNONYMS)

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.attribute,)

    def read(self, config: Any) -> dict[str, Any]:
        name = getattr(config, self.attribute)
        name = self.synonyms.get(name, name)
        for option, known in self.options.items():
            if known == name:
                return {"activation": option}
        raise refuse(config, self.attribute, name, ", ".join(self.options.values()))

    def write(self, spec: Spec) -> dict[str, Any]:
        name = self.options.get(spec["activation"])
        return {} if name is None else {self.attribute: name}
