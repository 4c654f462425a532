"""Define the identity of a run: the settings that decide its numbers, and their hash."""

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

# Raised whenever a code change alters the numbers of a run; older rows are then shown as stale.
SCIENCE_VERSION = 3

SETTINGS = ("model", "stability", "objective", "optim", "schedule", "trainer")  # keys whose every setting is hashed
GRAPH = (*PARTS, "stability", "model", "objective", "trainer")  # the keys that decide the operations of a step


class Content(Protocol):
    """The fingerprints of a text and its tokenizer, independent of their paths."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_fingerprint(self) -> str: ...


def science(cfg: RunConfig, data: Content) -> dict[str, Any]:
    """Return everything that decides a run's numbers, and nothing else.

    Included: final sizes and seeds, the options of the axes with their settings, the content of text, tokenizer and
    code that is not as shipped. Left out: class paths, file paths, runtime settings, and every null, so that a new key
    orphans nothing.
    """
    settings = {name: getattr(cfg, name) for name in (*SETTINGS, *PARTS)}
    known: dict[str, Any] = {"init_seed": cfg.init_seed, "data_seed": cfg.data_seed}
    known |= {"text": data.fingerprint, "tokenizer": data.tokenizer_fingerprint}
    return _science(SCIENCE_VERSION, known, settings, cfg.choices, cfg.code)


def _science(
    version: int,
    known: Mapping[str, Any],
    settings: Mapping[str, Any],
    choices: Mapping[str, str],
    code: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the science of a run, whose `settings` are by their keys in a configuration."""
    out: dict[str, Any] = {"science_version": version, **known, **{name: settings[name] for name in SETTINGS}}
    for name in PARTS:
        if (part := settings.get(name)) is not None:
            out[name] = {"option": choices[name], "settings": _without_targets(_plain(part))}
    if code:  # the content of code that is not as shipped, whatever its path
        out["code"] = sorted(code.values())
    return _plain(out)


def _without_targets(value: Any) -> Any:
    """Return settings without class paths: the option already names the class, and a class may move."""
    if isinstance(value, dict):
        return {key: _without_targets(item) for key, item in value.items() if key != "_target_"}
    return value


def _plain(value: Any) -> Any:
    """Return settings as dictionaries, without nulls and empty nodes, and with class names instead of class paths."""
    if isinstance(value, Settings):
        value = value.model_dump()
    if isinstance(value, dict):
        cleaned = {key: _plain(item) for key, item in value.items() if item is not None}
        if "_target_" in cleaned:
            cleaned["_target_"] = cleaned["_target_"].rpartition(".")[2]
        return {key: item for key, item in cleaned.items() if item != {}}
    return value


def is_stale(science_version: int, code: Mapping[str, str] | None) -> bool:
    """Return whether the code of a row, ours or a user's component, has changed its numbers since."""
    return science_version != SCIENCE_VERSION or bool(changed_since(code))


def run_id(cfg: RunConfig, data: Content) -> str:
    """Return the twelve hexadecimal digits that name the run."""
    return _hash(science(cfg, data))


def run_id_of(row: Mapping[str, Any]) -> str:
    """Return the id that the content of a result.json gives its run. Raises KeyError, TypeError, AttributeError or ValueError for a row
    without the settings that are hashed."""
    config, data = row["config"], row["data"]
    known = {"init_seed": row["init_seed"], "data_seed": row["data_seed"]}
    known |= {"text": data["fingerprint"], "tokenizer": data["tokenizer"]}
    return _hash(_science(row["science_version"], known, config, row["choices"], row.get("code")))


def _hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
