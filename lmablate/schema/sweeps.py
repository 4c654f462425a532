"""What a stored sweep says of itself, read from its YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lmablate.core.paths import SWEEPS_DIR

Row = dict[str, Any]
AT = " @ "  # between a stored sweep and its folder, where several folders have a study of it


def stored_sweep(name: str) -> str:
    """The stored sweep that a study of this name is of."""
    return name.partition(AT)[0]


def sweep_question(sweep: str) -> str | None:
    """What a stored sweep asks (``sweep.question`` of its YAML); None if there is no such sweep here."""
    return _sweep_node(sweep).get("question")


def sweep_claims(sweep: str) -> list[str]:
    """The ids of the claims that a stored sweep is about; none if there is no such sweep here."""
    return list(_sweep_node(sweep).get("claims") or ())


def _sweep_node(sweep: str) -> Row:
    for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"):
        path = folder / f"{stored_sweep(sweep)}.yaml"
        if path.is_file():
            return (yaml.safe_load(path.read_text()) or {}).get("sweep") or {}
    return {}
