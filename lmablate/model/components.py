"""From the YAML of a part to the class or function it names, checked against that signature."""

import importlib
import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from lmablate.core.errors import ConfigError
from lmablate.core.source_code import is_shipped
from lmablate.model.contracts import check_contract

_TORCH = frozenset(
    f"torch.nn.functional.{name}"
    for name in "relu gelu silu sigmoid elu selu celu mish softplus softsign tanh hardswish leaky_relu relu6 logsigmoid tanhshrink".split()
)
_SUPPLIED = frozenset({"layer"})  # keyword arguments that the factory gives, not the YAML
_trusted: set[str] = set()


def trust(*packages: str) -> None:
    """Let ``_target_`` name objects of these packages too. A target runs code, so each one is opened by its user."""
    _trusted.update(packages)


def trusted() -> list[str]:
    """The packages opened so far, in order."""
    return sorted(_trusted)


def _import(path: str, place: str) -> Any:
    module, _, name = path.rpartition(".")
    root = path.split(".")[0]
    home = path.startswith("lmablate.model.")
    if not (home or path in _TORCH or root in _trusted):
        raise ConfigError(
            f"{place}._target_={path} is not one of ours: allowed are objects defined in lmablate.model, the activation functions of "
            f"torch.nn.functional, and packages opened by name; if {root} is yours, add --trust {root}"
        )
    try:
        target = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever a user's module does as it is read
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}._target_={path} cannot be imported: {kind}{error}") from None
    # A name that lmablate.model merely imports (torch, a loader) must not pass as one of its parts.
    if home and not getattr(target, "__module__", "").startswith("lmablate.model."):
        raise ConfigError(f"{place}._target_={path} is not defined in lmablate.model")
    if not callable(target):
        raise ConfigError(f"{place}._target_={path} is not a class or a function")
    return target


def resolve(part: dict[str, Any], place: str) -> tuple[Any, dict[str, Any]]:
    """The target of `part` and its keyword arguments.

    `place` is the group's name, for messages. Raises ConfigError for a target that is not allowed, an unknown key, a
    missing one, or a value outside the type the signature states.
    """
    target = _import(part["_target_"], place)
    given = {key: value for key, value in part.items() if not key.startswith("_")}
    if part["_target_"] in _TORCH:
        _probe(target, given, place)
        return target, given
    check_contract(target, place)
    own, optional, adapters = _schema(target)
    for key, value in given.items():
        if key not in own:
            raise ConfigError(f"{place}.{key}: unknown key; {part['_target_']} takes {', '.join(own) or 'no keys'}")
        if key in adapters:
            try:
                adapters[key].validate_python(value, strict=True)
            except ValidationError as error:
                off = " (or null)" if key in optional else ""
                raise ConfigError(f"{place}.{key}={value}: {error.errors()[0]['msg'].lower()}{off}") from None
    given = dict.fromkeys(optional) | given
    if missing := [key for key, p in own.items() if p.default is p.empty and key not in given]:
        raise ConfigError(
            f"{place}: {part['_target_']} needs {', '.join(missing)}; set it in conf/{place}/, or as +{place}.{missing[0]}=..."
        )
    return target, given


@cache
def _schema(target: Any) -> tuple[dict[str, inspect.Parameter], list[str], dict[str, TypeAdapter[Any]]]:
    """What a signature says of its YAML: the keys, those that may be left out (off), and the checks of their types."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    own = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key not in _SUPPLIED}
    optional = [key for key in own if key in hints and type(None) in get_args(hints[key])]
    return own, optional, {key: TypeAdapter(hints[key]) for key in own if key in hints}


def _probe(function: Callable[..., Any], given: dict[str, Any], place: str) -> None:
    """torch's functions are written in C and have no signature to read, so they are tried."""
    try:
        function(torch.zeros(1, device="cpu"), **given)  # on the meta device torch would load its compiler
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{place}: {function.__name__} does not take {given}: {str(error).splitlines()[0]}") from None


def target(part: dict[str, Any], place: str) -> Any:
    """The class or function a part names, for what it says of itself (``needs_final_norm``, ``n_branches``, ...)."""
    return resolve(part, place)[0]


def build(part: dict[str, Any], place: str) -> "partial[Any]":
    """A callable that makes the part from what the factory supplies."""
    target, given = resolve(part, place)
    return partial(target, **given)


def count(part: dict[str, Any], place: str, *args: Any) -> int:
    """The parameters of one part by its own closed form, ``n_params``; a part without one is built, weightless, and counted."""
    target, given = resolve(part, place)
    if hasattr(target, "n_params") and (
        is_shipped(target) or "n_params" in vars(target)
    ):  # an inherited one is the parent's
        return target.n_params(*args, given)
    with torch.device("meta"):
        return sum(p.numel() for p in target(*args, **given).parameters())
