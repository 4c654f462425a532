"""List the research axes and their options from ``conf/``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from lmablate.core.paths import CONF_DIR

AXES = (
    "norm",
    "norm_position",
    "activation",
    "posemb",
    "attention",
    "block_layout",
    "ffn",
    "stability",
    "aspect_ratio",
)
PARTS = AXES[: AXES.index("ffn") + 1]  # axes with a module lmablate.model.<axis>; the others are numbers


@cache
def _defaults() -> tuple[tuple[str, str | None], ...]:
    """Return the groups of conf/train.yaml with their default options, in order."""
    entries = yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
    return tuple(pair for entry in entries if isinstance(entry, dict) for pair in entry.items())


def default_choices() -> dict[str, str]:
    """Return the default option of each group that has one."""
    return {group: option for group, option in _defaults() if option and "/" not in group and group != "tune"}


def options(group: str, *, shipped: bool = False) -> dict[str, str]:
    """Return the options of a group with the description in their files (the first comment line, without the example).
    Options of the current folder's conf/ are included, unless `shipped`."""
    folders = [CONF_DIR] if shipped else [Path.cwd() / "conf", CONF_DIR]
    found = {path.stem: path for folder in folders for path in (folder / group).glob("*.yaml")}
    return {path.stem: _description(path) for path in sorted(found.values(), key=_natural)}


def _natural(path: Path) -> tuple[str, int]:
    """Return a sorting key that puts r4 before r16."""
    digits = "".join(filter(str.isdigit, path.stem))
    return (path.stem.rstrip("0123456789"), int(digits or 0))


def _description(path: Path) -> str:
    comments = [
        line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line
    ]
    return comments[0].rpartition(". ")[0] if comments else ""


def groups() -> dict[str, str | None]:
    """Return every group of conf/ in the order of train.yaml, with its default option or None."""
    found = {group.removeprefix("override "): option for group, option in _defaults() if group != "sweeps"}
    plugins = {
        "hydra/launcher": "local",
        "hydra/sweeper": found.get("hydra/sweeper"),
    }  # conf/launcher.yaml says the first
    return {group: option for group, option in found.items() if "hydra" not in group} | plugins
