"""Check YAML of others: ``conf/`` and ``sweeps/`` of the current folder, which may have come with somebody's code or results.

A component names its class in ``_target_``, which model/components.py allows or not. Hydra's own tree has more keys that name
what is called (callbacks, handlers of its logging), before any check of ours. From such a folder it may only take the options
of a launcher or sweeper, and the parameters of a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR

MOST_BYTES = 1 << 20  # of a file
MOST_ALIASES = 100  # of a file: each may expand to everything above it
MOST_DEPTH = 30  # levels of lists and mappings
GROUPS = ("hydra/launcher/", "hydra/sweeper/")
OURS = "hydra_plugins.lmablate."
KEYS = ("launcher", "sweeper", "mode")  # allowed in the hydra node
FLAGS = ("-cd", "--config-dir", "-cp", "--config-path")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def check_folders(folders: Iterable[Path], own: Iterable[Path] = ()) -> None:
    """Raise ConfigError for a YAML file in `folders` that would make Hydra call something. Folders in `own` are trusted."""
    known = {path.resolve() for path in own}
    for folder in folders:
        if folder.is_dir() and folder.resolve() not in known:
            for path in sorted(folder.rglob("*.y*ml")):
                if path.is_file():
                    check_file(path, path.relative_to(folder).as_posix())


def refuse_hidden(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a chosen option or stored sweep that exists both here and in the project, with other content.

    The project's file is read, so an edit of the other would do nothing. `given` maps override keys to values."""
    for group, option in given.items():
        name = f"{option}.yaml" if group == "sweeps" else f"{group}/{option}.yaml"
        home = SWEEPS_DIR if group == "sweeps" else CONF_DIR
        mine, ours = Path.cwd() / home.name / name, home / name
        if ours.is_file() and mine.is_file() and not mine.samefile(ours) and mine.read_bytes() != ours.read_bytes():
            raise ConfigError(
                f"{group}={option}: {home.name}/{name} of this folder is not read, since lmablate has one of that name: give yours another"
            )


def named_folders(args: Sequence[str]) -> list[Path]:
    """Return the configuration folders that a command line names."""
    folders = []
    for flag, after in zip(args, [*args, ""][1:], strict=True):
        name, _, value = flag.partition("=")
        if name in FLAGS:
            folders.append(Path(value or after).expanduser().absolute())
    return folders


def check_file(path: Path, name: str) -> None:
    """Raise ConfigError for a YAML file that is unsafe; `name` is its path below the folder, ``group/option.yaml``."""
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes, and a configuration has {MOST_BYTES:,} at most")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,}): save it as UTF-8") from None
    try:
        _check_shape(path, text)
        node = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        return  # Hydra explains it better, if the file is used at all
    in_group = name.startswith(GROUPS)
    packages = [package for package in _PACKAGE.findall(text) if re.search(r"\bhydra\b", package)]
    packages += [entry for entry in _defaults(node) if re.search(r"@[^@]*\bhydra\b", entry)]
    if packages or (name.startswith("hydra/") and not in_group):
        raise ConfigError(
            f"{path}: sets Hydra's own tree ({packages[0] if packages else name}), which may call anything: {MEND}"
        )
    if in_group:
        if _defaults(node):
            raise ConfigError(f"{path}: a launcher or sweeper has no defaults list: {MEND}")
        _check_targets(path, node, top=True)
    for key, value in node.items() if isinstance(node, dict) else ():
        if str(key).partition(".")[0] == "hydra":
            wrong = [name for name in value if name not in KEYS] if isinstance(value, dict) else [value]
            if wrong or str(key) != "hydra":
                raise ConfigError(f"{path}: sets hydra.{wrong[0] if wrong else key}, which may call anything: {MEND}")
            _check_targets(path, value, top=False)


def _check_shape(path: Path, text: str) -> None:
    """Raise ConfigError for YAML that expands in memory, or nests deeper than later readers can follow."""
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ConfigError(f"{path}: more than {MOST_DEPTH} levels, and a configuration has fewer")
    if aliases > MOST_ALIASES:
        raise ConfigError(f"{path}: {aliases} aliases, and a configuration has {MOST_ALIASES} at most")


MEND = "take that out, or start the command in another folder"


def _check_targets(path: Path, node: Any, *, top: bool) -> None:
    """Raise ConfigError for a ``_target_`` that is not our plugin, or is not where a plugin belongs."""
    if "${" in str(node):
        raise ConfigError(f"{path}: an interpolation in Hydra's own tree may stand for anything: {MEND}")
    for depth, target in _targets(node):
        if depth > (0 if top else 1) or not str(target).startswith(OURS):
            raise ConfigError(f"{path}: _target_={target}: a launcher or sweeper is one of {OURS}*: {MEND}")


def _targets(node: Any, depth: int = 0) -> Iterator[tuple[int, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield depth, value
            else:
                yield from _targets(value, depth + 1)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, depth + 1)


def _defaults(node: Any) -> list[str]:
    """Return the entries of a defaults list."""
    entries = node.get("defaults") if isinstance(node, dict) else None
    names: list[str] = []
    for entry in entries if isinstance(entries, list) else ():
        names += [str(key) for key in entry] if isinstance(entry, dict) else [str(entry)]
    return names
