"""List the research axes and their options from ``conf/``.

``python -m lmablate.core.axes README.md`` renews the table between the markers of that file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.paths import CONF_DIR, given_path

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
_BEGIN, _END = "<!-- axes: made by python -m lmablate.core.axes README.md -->", "<!-- end of axes -->"


@cache
def default_choices() -> dict[str, str]:
    """Return the default option of each group, from conf/train.yaml."""
    entries = yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: option for group, option in pairs if option and "/" not in group and group != "tune"}


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
    entries = yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    found = {group.removeprefix("override "): option for group, option in pairs if group != "sweeps"}
    plugins = {
        "hydra/launcher": "local",
        "hydra/sweeper": found.get("hydra/sweeper"),
    }  # conf/launcher.yaml says the first
    return {group: option for group, option in found.items() if "hydra" not in group} | plugins


def markdown() -> str:
    """Return the table of the README: each axis with its options, the default in bold."""
    rows = ["| axis | options (default in bold) |", "|---|---|"]
    for axis in AXES:
        default = default_choices()[axis]
        cells = [f"**{option}**" if option == default else option for option in options(axis, shipped=True)]
        rows.append(f"| `{axis}` | {' · '.join(cells)} |")
    return "\n".join(rows)


def renew(document: str, name: str) -> str:
    """Return `document` with the table between its markers renewed. Raises ConfigError that names the file."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"{name}: there is no table to renew: it needs the lines {_BEGIN} and {_END}")
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Renew the table of one file, or print it."""
    parser = argparse.ArgumentParser(
        prog="python -m lmablate.core.axes", description="The table of the research axes, as it stands in conf/."
    )
    parser.add_argument(
        "file", nargs="?", type=given_path, metavar="FILE", help="renew the table there (default: print it)"
    )
    target = parser.parse_args(argv).file
    if target is None:
        print(markdown())
    else:
        target.write_text(renew(target.read_text(encoding="utf-8"), str(target)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
