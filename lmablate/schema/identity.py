"""What makes two runs the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lmablate.core.axes import PARTS
from lmablate.core.settings import Settings
from lmablate.core.source_code import changed_since

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

# Raised whenever a change of the code alters the numbers of a run; older rows are then shown as stale.
SCIENCE_VERSION = 2

GRAPH = (*PARTS, "stability", "model", "objective", "trainer")  # what decides the operations of a step


class Content(Protocol):
    """What identifies a text and the tokenizer that reads it, wherever the files stand."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_fingerprint(self) -> str: ...


def science(cfg: RunConfig, data: Content) -> dict[str, Any]:
    """Everything that decides a run's numbers, and nothing else.

    Final sizes and seeds, the option words of the axes with their settings, the content of the text and the tokenizer, and of
    code that is not as shipped. Left out: class paths, file paths, runtime settings, and every null, so that a key added later
    orphans nothing.
    """
    out: dict[str, Any] = {
        "science_version": SCIENCE_VERSION,
        "init_seed": cfg.init_seed,
        "data_seed": cfg.data_seed,
        "text": data.fingerprint,
        "tokenizer": data.tokenizer_fingerprint,
    }
    for name in ("model", "stability", "objective", "optim", "schedule", "trainer"):
        out[name] = getattr(cfg, name)
    for name in PARTS:
        if (part := getattr(cfg, name)) is not None:
            out[name] = {"option": cfg.choices[name], "settings": _without_targets(_plain(part))}
    if cfg.code:  # the content of what is not as shipped, wherever it stands
        out["code"] = sorted(cfg.code.values())
    return _plain(out)


def _without_targets(value: Any) -> Any:
    """The option's word already names the class, and a class may move."""
    if isinstance(value, dict):
        return {key: _without_targets(item) for key, item in value.items() if key != "_target_"}
    return value


def _plain(value: Any) -> Any:
    """Settings to dictionaries, without nulls and empty nodes; of a class path the name alone."""
    if isinstance(value, Settings):
        value = value.model_dump()
    if isinstance(value, dict):
        cleaned = {key: _plain(item) for key, item in value.items() if item is not None}
        if "_target_" in cleaned:
            cleaned["_target_"] = cleaned["_target_"].rpartition(".")[2]
        return {key: item for key, item in cleaned.items() if item != {}}
    return value


def is_stale(science_version: int, code: Mapping[str, str] | None) -> bool:
    """Return whether the code that made a row has since changed its numbers: ours, or that of a part of the user's own."""
    return science_version != SCIENCE_VERSION or bool(changed_since(code))


def run_id(cfg: RunConfig, data: Content) -> str:
    """Twelve hexadecimal digits that name the run."""
    text = json.dumps(science(cfg, data), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
