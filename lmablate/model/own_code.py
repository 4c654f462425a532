"""The source code of a run's parts that differs from the shipped code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lmablate.core.axes import PARTS
from lmablate.core.source_code import fingerprints, is_shipped, place_of
from lmablate.model import components

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def code_of(cfg: RunConfig) -> dict[str, str] | None:
    """Return the fingerprint of each module that decides numbers of `cfg` and is not as shipped; None if all are. Raises ConfigError
    for a part whose source cannot be read."""
    return fingerprints(place_of(target) for _, target in _targets(cfg)) or None


def own_parts(cfg: RunConfig) -> list[str]:
    """List the parts of `cfg` that are not as shipped, for messages: ``attention=gated (mypackage.parts.Gated)``."""
    found: dict[str, None] = {}
    for place, target in _targets(cfg):
        module, name = place_of(target)
        if not module.startswith("torch.") and not is_shipped(target):
            axis = place.partition(".")[0]
            found[f"{axis}={cfg.choices.get(axis)} ({module}.{name})"] = None
    return list(found)


def _targets(cfg: RunConfig) -> Iterator[tuple[str, Any]]:
    """The classes and functions that the options of `cfg` name, each with its key."""
    places = {axis: getattr(cfg, axis) for axis in PARTS if axis != "activation"}
    places |= {"activation.fn": cfg.activation.fn}
    places |= {f"stability.{name}": getattr(cfg.stability, name) for name in ("qk_norm", "v_norm")}
    for place, part in places.items():
        if part is not None:
            yield place, components.target(part, place)
