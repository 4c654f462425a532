"""Quote the values of keys that hold text (paths, names), so that users need not."""

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
    """Return the keys of the schema that hold free text (paths, names). Their values need no quotes."""
    return frozenset(_texts(RunRequest, ""))


def _texts(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        if str in kinds and (prefix or name == "results_dir" or name not in BOOKKEEPING):
            yield f"{prefix}{name}"
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _texts(kind, f"{prefix}{name}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, of values and of the items of lists."""
    if not (inner := get_args(annotation)):
        yield annotation
    elif getattr(annotation, "__origin__", None) is not dict:
        for part in inner:
            yield from _kinds(part)


def as_text(override: str) -> str:
    """Return the override of a text key, with quotes where its value would be read as something else, or not at all.

    Examples: ``trainer.init_from=0123456789e1``, ``results_dir=runs/lr=3e-4``."""
    key, _, value = override.partition("=")
    if not value or value.startswith(("'", '"', "${")):
        return override
    if value.startswith("[") and value.endswith("]"):
        return override if parsed(override) else f"{key}=[{','.join(_quoted(item) for item in value[1:-1].split(','))}]"
    parse = parsed(override)
    if parse is not None and parse.is_sweep_override() and not isinstance(parse.value(), ChoiceSweep):
        return override
    if parse is not None and re.match(r"(choice|shuffle|sort|range|glob|str)\(", value):
        return override
    return f"{key}={','.join(_quoted(item) for item in value.split(','))}"


def _quoted(item: str) -> str:
    """Return `item` as Hydra reads text: in quotes unless it is text already."""
    item = item.strip()
    parse = parsed(f"text={item}")
    if item.lower() == "null" or (parse is not None and isinstance(parse.value(), str)):
        return item
    slashes = "\\" * (len(item) - len(item.rstrip("\\")))  # at the end, where a backslash would escape the quote
    return "'" + item.replace("'", "\\'") + slashes + "'"


@lru_cache(maxsize=4096)
def parsed(override: str) -> Override | None:
    """Return Hydra's parse of an override, or None if it cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
