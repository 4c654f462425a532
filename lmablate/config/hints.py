"""Suggest the nearest key or option, and turn errors of Hydra, OmegaConf and pydantic into a ConfigError."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lmablate.config.synonyms import SYNONYMS
from lmablate.core.errors import EXPLAINERS, ConfigError
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR
from lmablate.schema.data import TEXTS
from lmablate.schema.tasks import SOURCES

Checked = TypeVar("Checked", bound=BaseModel)
MULTIRUN = "-m"
MOST_OPTIONS = 16  # listed in a message; of more options only the nearest are shown


def options_of(group: str) -> list[str]:
    """Return the options of a group, including those of the current folder. Empty if there is no such group."""
    if not re.fullmatch(r"[\w/-]+", group):
        return []
    folders = [SWEEPS_DIR if group == "sweeps" else CONF_DIR / group, Path.cwd() / "conf" / group, Path.cwd() / group]
    return sorted({path.stem for folder in folders[: 3 if group == "sweeps" else 2] for path in folder.glob("*.yaml")})


@cache
def off_groups() -> frozenset[str]:
    """Return the groups without an option by default."""
    entries = yaml.safe_load((CONF_DIR / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return frozenset(
        key for entry in entries if isinstance(entry, dict) for key, value in entry.items() if value is None
    )


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """Return the error message for an option that its group does not have, with the options it has."""
    near = difflib.get_close_matches(option, options, n=5, cutoff=0.5)
    if option in ("null", "false", "False", "off") and "none" in options:
        near = ["none"]
    if len(options) <= MOST_OPTIONS:
        meant = f", did you mean {near[0]}?" if near and option != near[0] else ";"
        return f"{group}={option}: no such option{meant} {group} has {', '.join(options)}"
    listed = {"preset": "lmablate presets lists them", "sweeps": "--help lists them"}.get(group)
    rest = listed or f"{group} has {', '.join(options)}"
    meant = f", did you mean {' or '.join(near)}?" if near else ";"
    return f"{group}={option}: no such option{meant} {rest}"


@cache
def known_keys() -> tuple[str, ...]:
    """Return every dotted key and every group of conf/."""
    keys = {"sweeps", "scale", "hydra/launcher", "hydra/sweeper"}
    for path in CONF_DIR.rglob("*.yaml"):
        group = path.parent.relative_to(CONF_DIR).as_posix()
        if group.startswith("hydra") or group == "preset":
            continue
        for name in _keys_of(path, group):
            if name not in ("defaults", "hydra", "sweep"):
                keys.add(name if group == "." else f"{group}.{name}")
        keys.add(group)
    return tuple(sorted(keys - {"."}))


def _keys_of(path: Path, group: str) -> dict[str, Any]:
    """Return the keys that an option's file sets in its own group."""
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = node.get(group, node) if isinstance(node, dict) else None
    return {str(name): value for name, value in own.items()} if isinstance(own, dict) else {}


def owners(key: str) -> list[str]:
    """Return the options of the key's group that have the key."""
    group, _, name = key.rpartition(".")
    if not group or not options_of(group):
        return []
    return [path.stem for path in sorted((CONF_DIR / group).glob("*.yaml")) if name in _keys_of(path, group)]


def hint(key: str) -> str:
    """Return ``, did you mean ...?`` for an unknown key, or where the keys are listed.

    Candidates are keys of nearly the same name, keys with the same last part, and names that other libraries use."""
    keys, last = known_keys(), key.rpartition(".")[2]
    if not key.startswith("ladder"):  # its keys hold only beside ladder=...
        keys = tuple(known for known in keys if not known.startswith("ladder."))
    named = [SYNONYMS[last]] if last in SYNONYMS else []
    ends = [known for known in keys if known.rpartition(".")[2] == last]
    whole = difflib.get_close_matches(key, keys, n=1, cutoff=0.84)
    lasts = sorted({known.rpartition(".")[2] for known in keys} | set(SYNONYMS))
    nearly = difflib.get_close_matches(last, lasts, n=1, cutoff=0.8)
    similar = [known for known in keys if nearly and known.rpartition(".")[2] == nearly[0]] or [
        SYNONYMS[name] for name in nearly if name in SYNONYMS
    ]
    loose = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    for candidates in (named if key == last else [], ends, whole, named, similar, loose):
        if candidates := [name for name in candidates if name != key]:
            return f", did you mean {' or '.join(candidates[:3])}?"
    return "; --help lists the groups, and --cfg job every key"


def unknown_key(key: str, overrides: Sequence[str] = ()) -> str:
    """Return the error message for a key that the configuration does not have; `overrides` is the command line."""
    chosen = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    group = key.rpartition(".")[0]
    if group in ("sweep", "tune") or group.startswith(("sweep.", "tune.")):
        return _unknown_of_study(key, chosen.get("sweeps"))
    if having := owners(key):
        option = chosen.get(group)
        lacks = f"{group}={option} has no such key" if option else "no such key in the option chosen"
        return f"{key}: {lacks}; {group}={' or '.join(having)} has it"
    return f"{key}: no such key{hint(key)}"


def _unknown_of_study(key: str, sweep: str | None) -> str:
    """Return the error message for a key of studies that is misspelt, or set where there is no study."""
    path = next(
        (p for p in (SWEEPS_DIR / f"{sweep}.yaml", Path.cwd() / "sweeps" / f"{sweep}.yaml") if p.is_file()), None
    )
    if path is None:
        return f"{key}: only a study has this; choose a stored sweep that has arms (sweeps=<question>)"
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(node, dict) and isinstance(node.get("sweep"), dict) and node["sweep"].get("arms"):
        return f"{key}: no such key in sweeps={sweep}; a key that its file does not set is added with ++{key}=..."
    seeds = "its seeds are a key like any other, e.g. seed=0,1,2" if "seed" in key else "give several values of a key"
    return f"{key}: sweeps={sweep} is a grid and no study with arms: {seeds}"


def explain(error: ValidationError) -> str:
    """Return all errors of a pydantic validation, one a line, with dotted keys."""
    lines = []
    for item in error.errors():
        key = _dotted(item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            having = owners(key)
            group = key.rpartition(".")[0]
            mend = f" in the option chosen; {group}={' or '.join(having)} has it" if having else hint(key)
            if key == "sweeps":
                mend = "; the file of a stored sweep begins with the line # @package _global_"
            lines.append(f"{key}: unknown key{mend}")
        elif item["type"] == "missing":
            lines.append(f"{key}: missing, and every run needs it: give {key}=VALUE")
        elif item["type"] == "value_error":
            lines.append(message if not key or message.startswith(key) else f"{key}: {message}")
        else:
            lines.append(f"{key}={item['input']}: {message[0].lower()}{message[1:]}")
    return "\n".join(lines)


def _dotted(steps: Sequence[str | int]) -> str:
    """The key at the place `steps` of pydantic, without the words that say which class was chosen."""
    chosen = {*TEXTS, *SOURCES, "mixture", "bpe", "bytes", "pretrained"}
    pairs = zip(("", *steps), steps, strict=False)
    return ".".join(str(step) for before, step in pairs if step not in chosen or before == "texts")


def validated(kind: type[Checked], values: Any, prefix: str = "") -> Checked:
    """Return `values` as settings of a kind. Raises ConfigError with a line an error, each behind `prefix`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{prefix}{line}" for line in explain(error).splitlines())) from error


def refused_key(error: Exception) -> str | None:
    """Return the key that Hydra would not set because the configuration has none of its name."""
    match = re.search(
        r"Could not override '([^']+)'", " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    )
    return match[1] if match else None


def to_config_error(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """Return the ConfigError for an exception of Hydra or OmegaConf, without search paths and advice that does not apply here.

    `overrides` are the overrides that were refused, where they are known."""
    chain = " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    if key := refused_key(error):
        return ConfigError(unknown_key(key, overrides))
    if match := re.search(r"Ambiguous value for argument '([^\n]+)'\n", chain):
        from lmablate.config.overrides import several_values

        return ConfigError(several_values(match[1]))
    if match := re.search(r"Sweep parameters '(.+?)' requires --multirun", chain):
        return ConfigError(f"{match[1]}: several values make a grid: add {MULTIRUN} in front of the overrides")
    if match := re.search(
        r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\s+\S+)*?)\s*(?:Config search path|$)", chain
    ):
        group, options = match[2], match[3].split()
        return ConfigError(no_option(group, match[1].removeprefix(f"{group}/"), options))
    if match := re.search(r"Could not find '([^']+)'", chain):
        return ConfigError(f"{match[1]}: no such group or option{hint(match[1].partition('/')[0])}")
    if match := re.search(r"Missing mandatory value: (\S+)", chain):
        return ConfigError(f"{match[1]}: needs a value; give it on the command line")
    message = (
        (str(error) or str(error.__cause__ or "")).split("Config search path")[0].split("See https://hydra")[0].strip()
    )
    message = re.sub(r"\s*\n\s*full_key: (.*)", r" (\1)", re.sub(r"\n\s*object_type=.*", "", message))
    return ConfigError(message or f"{type(error).__name__} of the configuration; HYDRA_FULL_ERROR=1 shows where")


EXPLAINERS.update(dict.fromkeys(("hydra", "omegaconf", "antlr4"), to_config_error))
