"""Types of configuration keys in words, from pydantic models and from the signatures of parts."""

from __future__ import annotations

import types
import typing
from typing import Any, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from lmablate.core.settings import Settings
from lmablate.model import components

PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
BOUNDS = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}


def field_types(model: type[Settings], root: str) -> dict[str, str]:
    """Return the type of each key of a model, and of the models in it, by its dotted name below `root`."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = f"{root}.{name}".lstrip(".")
        found.setdefault(key, words(field.annotation, tuple(field.metadata)))
        for inner in _models(field.annotation):
            for below, kind in field_types(inner, key).items():
                found.setdefault(below, kind)
    return found


def part_types(node: Any, place: str) -> dict[str, str]:
    """Return the types of the keys of the parts that a file's `node` names by ``_target_``."""
    if not isinstance(node, dict):
        return {}
    found: dict[str, str] = {}
    for name, value in node.items():
        found |= part_types(value, f"{place}.{name}")
    if "_target_" not in node:
        return found
    if node["_target_"].startswith("torch."):  # written in C, without a signature
        own = {name: words(type(value)) for name, value in node.items() if name != "_target_"}
    else:
        target = components.target(node, place)
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target, include_extras=True)
        own = {name: words(hints.get(name, Any)) for name in components._schema(target)[0]}
    return {f"{place}.{name}": kind for name, kind in own.items()} | found


def _models(kind: Any) -> list[type[Settings]]:
    """Return the models in a type, through unions, lists and dictionaries."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        return [kind]
    return [model for inner in typing.get_args(kind) for model in _models(inner)]


def words(kind: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Return a type in words: ``whole number > 0 or null``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return words(inner[0], (*inner[1:], *metadata))
    if origin in (typing.Union, types.UnionType):
        kinds = list(dict.fromkeys(words(one) for one in inner))
        kinds.sort(key="null".__eq__)
        return " or ".join(kinds)
    if origin is typing.Literal:
        return " or ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in inner)
    if origin is list:
        return f"list of {words(inner[0])}"
    if origin is dict:
        return f"names with {words(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "keys below"
    return PLAIN.get(kind, "any") + _bounds(metadata)


def _bounds(metadata: tuple[Any, ...]) -> str:
    flat = [one for item in metadata for one in getattr(item, "metadata", [item])]
    return "".join(
        f" {sign} {getattr(one, name):g}"
        for one in flat
        for kind, (sign, name) in BOUNDS.items()
        if isinstance(one, kind)
    )
