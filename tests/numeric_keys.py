"""Every numeric key there is, found in the pydantic models and in the signatures of the parts that conf/ names."""

import types
import typing
from typing import Any, get_type_hints

import yaml

from lmablate.core.paths import CONF_DIR
from lmablate.core.settings import Settings
from lmablate.model import components
from lmablate.schema.run_config import RunRequest
from lmablate.sweeper.optuna_space import SearchSettings
from lmablate.sweeper.settings import StudySettings, TuneSettings

ROOTS = {"": RunRequest, "sweep": StudySettings, "tune": TuneSettings, "hydra.sweeper": SearchSettings}
# The file's own, a preset's, and those of a range, which are what a search is about.
OURS = {"schema_version", "published_vocab_size", *(f"hydra.sweeper.space.{key}" for key in ("low", "high", "choices"))}


def numeric_keys() -> set[str]:
    found = {key for root, model in ROOTS.items() for key in _of_type(model, root)}
    for path in sorted(CONF_DIR.glob("*/*.yaml")):
        if path.parent.name not in ("preset", "shrink"):
            node = yaml.safe_load(path.read_text()) or {}
            found |= set(_of_parts(node.get(path.parent.name, node), path.parent.name))
    # The texts of a mixture have the keys that a single text has.
    return {key.replace("data.texts.", "data.") for key in found} - OURS


def _of_type(kind: Any, place: str) -> list[str]:
    """The dotted numeric keys below a type, through unions, lists and models."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        hints = kind.model_fields.items()
        return [key for name, field in hints for key in _of_type(field.annotation, f"{place}.{name}".lstrip("."))]
    if kind in (int, float):
        return [place]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return _of_type(inner[1], place)
    through = origin in (typing.Union, types.UnionType, list, typing.Annotated)
    return [key for one in inner for key in _of_type(one, place)] if through else []


def _of_parts(node: Any, place: str) -> list[str]:
    """Of parts named by ``_target_``, however deep they stand in an option's file."""
    if not isinstance(node, dict):
        return []
    own = [key for name, value in node.items() for key in _of_parts(value, f"{place}.{name}")]
    if "_target_" not in node:
        return own
    if node["_target_"].startswith("torch."):  # written in C, without a signature
        return own + [f"{place}.{name}" for name, value in node.items() if isinstance(value, int | float)]
    target = components.target(node, place)
    hints = get_type_hints(target.__init__ if isinstance(target, type) else target, include_extras=True)
    return own + [key for name in components._schema(target)[0] for key in _of_type(hints.get(name), f"{place}.{name}")]
