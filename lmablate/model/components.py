"""Resolution of a part's YAML to the class or function it names, checked against its signature."""

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
_SUPPLIED = frozenset({"layer"})  # keyword arguments from the factory, not from the YAML
_trusted: set[str] = set()


def trust(*packages: str) -> None:
    """Allow ``_target_`` to name objects of these packages. A target runs code, so its user must open each package."""
    _trusted.update(packages)


def trusted() -> list[str]:
    """Return the opened packages, sorted."""
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
    except (Exception, SystemExit) as error:  # a user's module may raise anything on import
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ConfigError(f"{place}._target_={path} cannot be imported: {kind}{error}") from None
    # A name that lmablate.model only imports (torch, a loader) must not pass as one of its parts.
    if home and not getattr(target, "__module__", "").startswith("lmablate.model."):
        raise ConfigError(f"{place}._target_={path} is not defined in lmablate.model")
    if not callable(target):
        raise ConfigError(f"{place}._target_={path} is not a class or a function")
    return target


def resolve(part: dict[str, Any], place: str) -> tuple[Any, dict[str, Any]]:
    """Return the target of `part` and its keyword arguments; `place` is the key of the part, for messages. Raises ConfigError for a
    target that is not allowed, an unknown or missing key, or a value outside the annotated type."""
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
    """The YAML keys of a signature, those that may be omitted (off), and the type checks."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    own = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key not in _SUPPLIED}
    optional = [key for key in own if key in hints and type(None) in get_args(hints[key])]
    return own, optional, {key: TypeAdapter(hints[key]) for key in own if key in hints}


def _probe(function: Callable[..., Any], given: dict[str, Any], place: str) -> None:
    """Call a torch function on one number, since functions written in C have no signature."""
    try:
        function(torch.zeros(1, device="cpu"), **given)  # on the meta device torch would load its compiler
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{place}: {function.__name__} does not take {given}: {str(error).splitlines()[0]}") from None


def target(part: dict[str, Any], place: str) -> Any:
    """Return the class or function of a part, for its class attributes (``needs_final_norm``, ``n_branches``, ...)."""
    return resolve(part, place)[0]


def build(part: dict[str, Any], place: str) -> "partial[Any]":
    """Return a callable that builds the part from the factory's arguments."""
    target, given = resolve(part, place)
    return partial(target, **given)


def count(part: dict[str, Any], place: str, *args: Any) -> int:
    """Return the parameter count of a part by its closed form ``n_params``; without one, build it on the meta device and count."""
    target, given = resolve(part, place)
    if hasattr(target, "n_params") and (
        is_shipped(target) or "n_params" in vars(target)
    ):  # an inherited one counts the parent alone
        return target.n_params(*args, given)
    with torch.device("meta"):
        return sum(p.numel() for p in target(*args, **given).parameters())
