"""Quotes for the keys of the schema that hold text (paths, names), so that nobody has to type them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from pydantic import BaseModel

from lmablate.core.settings import BOOKKEEPING
from lmablate.schema.run_config import RunRequest


@cache
def text_keys() -> frozenset[str]:
    """Return the keys of the schema that hold free text (paths, names): their values need no quotes."""
    return frozenset(_texts(RunRequest, ""))


def _texts(model: type[BaseModel], place: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        if str in kinds and (place or name == "results_dir" or name not in BOOKKEEPING):
            yield f"{place}{name}"
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _texts(kind, f"{place}{name}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, of values and of the items of lists."""
    if not (inner := get_args(annotation)):
        yield annotation
    elif getattr(annotation, "__origin__", None) is not dict:
        for part in inner:
            yield from _kinds(part)


def as_text(word: str) -> str:
    """Return the override of a key that holds text, with quotes where its value would be read as something else, or not at all:
    ``trainer.init_from=0123456789e1``, ``results_dir=runs/lr=3e-4``."""
    key, _, value = word.partition("=")
    if not value or value.startswith(("'", '"', "${")):
        return word
    if value.startswith("[") and value.endswith("]"):
        return word if parsed(word) else f"{key}=[{','.join(_quoted(item) for item in value[1:-1].split(','))}]"
    override = parsed(word)
    if override is not None and override.is_sweep_override() and not isinstance(override.value(), ChoiceSweep):
        return word
    if override is not None and re.match(r"(choice|shuffle|sort|range|glob|str)\(", value):
        return word
    return f"{key}={','.join(_quoted(item) for item in value.split(','))}"


def _quoted(item: str) -> str:
    """Text that Hydra reads as text: in quotes unless it is that already."""
    item = item.strip()
    override = parsed(f"text={item}")
    if item.lower() == "null" or (override is not None and isinstance(override.value(), str)):
        return item
    slashes = "\\" * (len(item) - len(item.rstrip("\\")))  # at the end, where one would take the quote with it
    return "'" + item.replace("'", "\\'") + slashes + "'"


@lru_cache(maxsize=4096)
def parsed(word: str) -> Override | None:
    """Return what Hydra's grammar makes of an override; None where it makes nothing."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
