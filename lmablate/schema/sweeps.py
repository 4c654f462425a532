"""Read question and claims of a stored sweep from its YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lmablate.core.paths import SWEEPS_DIR

Row = dict[str, Any]
AT = " @ "  # between a stored sweep and its folder, if several folders have a study of it


def stored_sweep(name: str) -> str:
    """Return the stored sweep of a study with this name."""
    return name.partition(AT)[0]


def sweep_question(sweep: str) -> str | None:
    """Return the ``sweep.question`` of a stored sweep, or None if there is no such sweep here."""
    return _sweep_node(sweep).get("question")


def sweep_claims(sweep: str) -> list[str]:
    """Return the claim ids of a stored sweep; empty if there is no such sweep here."""
    return list(_sweep_node(sweep).get("claims") or ())


def _sweep_node(sweep: str) -> Row:
    for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"):
        path = folder / f"{stored_sweep(sweep)}.yaml"
        if path.is_file():
            return (yaml.safe_load(path.read_text()) or {}).get("sweep") or {}
    return {}
