"""Configurations made from one composed configuration by swapping options, which costs nothing; composing costs much."""

from functools import cache
from typing import Any

import yaml
from tiny import SHORT, config

from lmablate.core.paths import CONF_DIR
from lmablate.schema.run_config import ActivationSettings, RunConfig, StabilitySettings

base = cache(config)


def option(axis: str, name: str) -> dict[str, Any]:
    """What conf/ says of an option, with windows and bucket ranges shorter than the text, as in tiny.py."""
    raw = yaml.safe_load((CONF_DIR / axis / f"{name}.yaml").read_text())
    part = raw.get(axis, raw)  # options that also set a size wrap their own keys
    part.update({key: value for key, value in SHORT.get(axis, {}).items() if key in part})
    return raw


def variant(*, model: dict[str, Any] | None = None, **axes: str) -> RunConfig:
    """The small default configuration with other options, e.g. ``variant(attention="gqa", model={"bias": True})``."""
    cfg = base()
    updates: dict[str, Any] = {"choices": cfg.choices | axes}
    sizes: dict[str, Any] = {}
    for axis, name in axes.items():
        raw = option(axis, name)
        sizes |= raw.get("model", {})
        part = raw.get(axis, raw)
        made = {"activation": ActivationSettings, "stability": StabilitySettings}.get(axis)
        updates[axis] = made(**part) if made else part
    updates["model"] = cfg.model.model_copy(update={**sizes, **(model or {})})
    return cfg.model_copy(update=updates)
