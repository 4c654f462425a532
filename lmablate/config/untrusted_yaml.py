"""YAML of others: ``conf/`` and ``sweeps/`` of the current folder, which may have come with somebody's code or results.

A part names its class in ``_target_``, which model/parts.py allows or not. Hydra's own tree has further places that name
what is called (callbacks, handlers of its logging), before any check of ours: from such a folder nothing is taken for it but
options of a launcher or sweeper, and the parameters of a sweep.
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
MOST_ALIASES = 100  # of a file: each may stand for all that was said before
MOST_DEPTH = 30  # levels of lists and mappings
GROUPS = ("hydra/launcher/", "hydra/sweeper/")
OURS = "hydra_plugins.lmablate."
KEYS = ("launcher", "sweeper", "mode")  # that may be set in the hydra node
FLAGS = ("-cd", "--config-dir", "-cp", "--config-path")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def check_folders(folders: Iterable[Path], own: Iterable[Path] = ()) -> None:
    """Raise ConfigError for a YAML file in one of `folders` that would have Hydra call something. `own` are not looked at."""
    known = {path.resolve() for path in own}
    for folder in folders:
        if folder.is_dir() and folder.resolve() not in known:
            for path in sorted(folder.rglob("*.y*ml")):
                if path.is_file():
                    check_file(path, path.relative_to(folder).as_posix())


def refuse_hidden(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option or stored sweep that was asked for and stands both here and in the project, whose own is the
    one that is read: an edit of the other would do nothing. `given` maps override keys to values."""
    for group, option in given.items():
        name = f"{option}.yaml" if group == "sweeps" else f"{group}/{option}.yaml"
        home = SWEEPS_DIR if group == "sweeps" else CONF_DIR
        mine, ours = Path.cwd() / home.name / name, home / name
        if ours.is_file() and mine.is_file() and not mine.samefile(ours) and mine.read_bytes() != ours.read_bytes():
            raise ConfigError(
                f"{group}={option}: {home.name}/{name} of this folder is not read, since lmablate has one of that name: give yours another"
            )


def named_folders(words: Sequence[str]) -> list[Path]:
    """The folders of configurations that a command line names."""
    found = []
    for flag, after in zip(words, [*words, ""][1:], strict=True):
        name, _, value = flag.partition("=")
        if name in FLAGS:
            found.append(Path(value or after).expanduser().absolute())
    return found


def check_file(path: Path, name: str) -> None:
    """`name` is the place of `path` below its folder: the group and the option."""
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
        return  # Hydra says it better, if anybody asks for this file
    in_group = name.startswith(GROUPS)
    packages = [found for found in _PACKAGE.findall(text) if re.search(r"\bhydra\b", found)]
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
            wrong = [word for word in value if word not in KEYS] if isinstance(value, dict) else [value]
            if wrong or str(key) != "hydra":
                raise ConfigError(f"{path}: sets hydra.{wrong[0] if wrong else key}, which may call anything: {MEND}")
            _check_targets(path, value, top=False)


def _check_shape(path: Path, text: str) -> None:
    """Raise ConfigError for what would grow in memory, or nests deeper than whoever reads it next can follow."""
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
    """Only our own plugins may be named, and only where a plugin is."""
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
    """The words of a defaults list."""
    entries = node.get("defaults") if isinstance(node, dict) else None
    words: list[str] = []
    for entry in entries if isinstance(entries, list) else ():
        words += [str(key) for key in entry] if isinstance(entry, dict) else [str(entry)]
    return words
