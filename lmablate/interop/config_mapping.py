"""Two-way views of a transformers configuration.

A lens reads some of our facts (facts.py) off a configuration and writes them as keyword arguments of one; a family is a
list of lenses. What a lens reads of an option that we do not have is a ConfigError; what it cannot write it leaves out, and
reading back what was written then shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmablate.core.errors import ConfigError
from lmablate.interop.model_spec import Facts

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
    """What to raise for a value of theirs that no option of ours gives."""
    return ConfigError(
        f"from_hf: {type(config).__name__}.{attribute}={value!r} cannot be expressed here: allowed is {allowed}"
    )


class Lens(Protocol):
    """`theirs`: the attributes of a configuration that it answers for."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    def read(self, config: Any) -> dict[str, Any]: ...

    def write(self, facts: Facts) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Given:
    """Facts that a class has by nature."""

    facts: Facts
    theirs: tuple[str, ...] = ()

    def read(self, config: Any) -> dict[str, Any]:
        return dict(self.facts)

    def write(self, facts: Facts) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Keys:
    """Facts that an attribute holds as they are; None stands for what is plain."""

    names: Mapping[str, str]

    @property
    def theirs(self) -> tuple[str, ...]:
        return tuple(self.names.values())

    def read(self, config: Any) -> dict[str, Any]:
        found = {ours: getattr(config, theirs) for ours, theirs in self.names.items()}
        return {key: value for key, value in found.items() if value is not None}

    def write(self, facts: Facts) -> dict[str, Any]:
        return {theirs: facts[ours] for ours, theirs in self.names.items() if ours in facts}


@dataclass(frozen=True)
class Only:
    """Attributes whose other values change what is computed in a way that we do not have: name to the value there may be."""

    values: Mapping[str, Any]

    @property
    def theirs(self) -> tuple[str, ...]:
        return tuple(self.values)

    def read(self, config: Any) -> dict[str, Any]:
        for name, value in self.values.items():
            if (got := getattr(config, name, value)) != value:
                raise refuse(config, name, got, repr(value))
        return {}

    def write(self, facts: Facts) -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class Via:
    """Anything else, by a function each way."""

    theirs: tuple[str, ...]
    reader: Callable[[Any], dict[str, Any]]
    writer: Callable[[Facts], dict[str, Any]]

    def read(self, config: Any) -> dict[str, Any]:
        return self.reader(config)

    def write(self, facts: Facts) -> dict[str, Any]:
        return self.writer(facts)


@dataclass(frozen=True)
class Activation:
    """The pointwise function by its name there."""

    attribute: str
    words: Mapping[str, str] = field(default_factory=lambda: PLAIN_ACTIVATIONS)
    synonyms: Mapping[str, str] = field(default_factory=lambda: _SYNONYMS)

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.attribute,)

    def read(self, config: Any) -> dict[str, Any]:
        name = getattr(config, self.attribute)
        name = self.synonyms.get(name, name)
        for word, known in self.words.items():
            if known == name:
                return {"activation": word}
        raise refuse(config, self.attribute, name, ", ".join(self.words.values()))

    def write(self, facts: Facts) -> dict[str, Any]:
        name = self.words.get(facts["activation"])
        return {} if name is None else {self.attribute: name}
