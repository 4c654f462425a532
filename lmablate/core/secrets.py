"""Keep keys and tokens of the environment out of everything that we write.

A secret is the value of a variable whose name says so (``WANDB_API_KEY``, ``HF_TOKEN``). A configuration that holds one
is refused, since every result would hold it too; in messages and logs the variable's name replaces it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from lmablate.core.errors import ConfigError

_NAME = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:$|_)", re.IGNORECASE)
SHORTEST = 8  # characters; shorter values occur in other text by chance


def secrets() -> dict[str, str]:
    """Return the names of variables by their secret values, longest value first."""
    found = {value: name for name, value in os.environ.items() if _NAME.search(name) and len(value) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def redacted(text: str) -> str:
    """Return `text` with secret values replaced by the names of their variables."""
    for value, name in secrets().items():
        if value in text:
            text = text.replace(value, f"<{name}>")
    return text


def refuse(config: Any) -> None:
    """Raise ConfigError if a configuration, as plain values, holds a secret. The message does not show it."""
    known = secrets()
    if not known:
        return
    for place, text in _texts(config):
        for value, name in known.items():
            if value in text:
                raise ConfigError(
                    f"{redacted(place)}: holds the value of {name}, and a configuration stands in results, logs and reports: leave it "
                    "in the environment, where wandb and the hub look for it"
                )


def _texts(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield place, str(key)
            yield from _texts(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value, place)
    elif isinstance(node, str):
        yield place, node
