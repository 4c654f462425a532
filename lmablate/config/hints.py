"""What the user meant: the nearest key or option, and Hydra's and OmegaConf's refusals in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lmablate.config.synonyms import SYNONYMS
from lmablate.core.errors import EXPLAINERS, ConfigError
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR
from lmablate.schema.tasks import SOURCES

MULTIRUN = "-m"
MOST_OPTIONS = 16  # that a message lists; of more, the nearest


def options_of(group: str) -> list[str]:
    """Return the options of a group, those of the current folder among them; empty where there is no such group."""
    if not re.fullmatch(r"[\w/-]+", group):
        return []
    places = [SWEEPS_DIR if group == "sweeps" else CONF_DIR / group, Path.cwd() / "conf" / group, Path.cwd() / group]
    return sorted({path.stem for folder in places[: 3 if group == "sweeps" else 2] for path in folder.glob("*.yaml")})


@cache
def off_groups() -> frozenset[str]:
    """Return the groups of which no option is chosen by default."""
    entries = yaml.safe_load((CONF_DIR / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return frozenset(
        key for entry in entries if isinstance(entry, dict) for key, value in entry.items() if value is None
    )


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """Say that a group has no such option, and which it has."""
    near = difflib.get_close_matches(option, options, n=5, cutoff=0.5)
    if option in ("null", "false", "False", "off") and "none" in options:
        near = ["none"]
    if len(options) <= MOST_OPTIONS:
        meant = f", did you mean {near[0]}?" if near and option != near[0] else ";"
        return f"{group}={option}: no such option{meant} {group} has {', '.join(options)}"
    listed = {"preset": "python -m lmablate.presets lists them", "sweeps": "--help lists them"}.get(group)
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
            if name not in ("defaults", "hydra"):
                keys.add(name if group == "." else f"{group}.{name}")
        keys.add(group)
    return tuple(sorted(keys - {"."}))


def _keys_of(path: Path, group: str) -> dict[str, Any]:
    """The keys an option's file sets in its own group."""
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = node.get(group, node) if isinstance(node, dict) else None
    return {str(name): value for name, value in own.items()} if isinstance(own, dict) else {}


def owners(key: str) -> list[str]:
    """Return the options of the key's group that have it."""
    group, _, name = key.rpartition(".")
    if not group or not options_of(group):
        return []
    return [path.stem for path in sorted((CONF_DIR / group).glob("*.yaml")) if name in _keys_of(path, group)]


def hint(key: str) -> str:
    """Return ``, did you mean ...?`` for a key that is none of ours: one that is nearly the same, the keys that end so, and what
    others call so; else where the keys are listed."""
    keys, last = known_keys(), key.rpartition(".")[2]
    named = [SYNONYMS[last]] if last in SYNONYMS else []
    ends = [known for known in keys if known.rpartition(".")[2] == last]
    whole = difflib.get_close_matches(key, keys, n=1, cutoff=0.84)
    lasts = sorted({known.rpartition(".")[2] for known in keys} | set(SYNONYMS))
    nearly = difflib.get_close_matches(last, lasts, n=1, cutoff=0.8)
    similar = [known for known in keys if nearly and known.rpartition(".")[2] == nearly[0]] or [
        SYNONYMS[name] for name in nearly if name in SYNONYMS
    ]
    loose = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    for found in (named if key == last else [], ends, whole, named, similar, loose):
        if found := [name for name in found if name != key]:
            return f", did you mean {' or '.join(found[:3])}?"
    return "; --help lists the groups, and --cfg job every key"


def unknown_key(key: str, words: Sequence[str] = ()) -> str:
    """Say what is wrong with a key that the configuration has not; `words` are the overrides it stands among."""
    chosen = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    group = key.rpartition(".")[0]
    if group in ("sweep", "tune") or group.startswith(("sweep.", "tune.")):
        return _unknown_of_study(key, chosen.get("sweeps"))
    if having := owners(key):
        option = chosen.get(group)
        lacks = f"{group}={option} has no such key" if option else "no such key in the option chosen"
        return f"{key}: {lacks}; {group}={' or '.join(having)} has it"
    return f"{key}: no such key{hint(key)}"


def _unknown_of_study(key: str, sweep: str | None) -> str:
    """Keys of studies, set where there is none, or misspelt."""
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
    """Return all of pydantic's findings, one a line, with dotted keys."""
    lines = []
    for item in error.errors():
        place = ".".join(
            str(step)
            for step in item["loc"]
            if step not in ("kjv", "files", "hub", "synthetic", "bpe", "bytes", "pretrained", *SOURCES)
        )
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            having = owners(place)
            group = place.rpartition(".")[0]
            mend = f" in the option chosen; {group}={' or '.join(having)} has it" if having else hint(place)
            if place == "sweeps":
                mend = "; the file of a stored sweep begins with the line # @package _global_"
            lines.append(f"{place}: unknown key{mend}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing, and every run needs it: give {place}=VALUE")
        elif item["type"] == "value_error":
            lines.append(message if not place or message.startswith(place) else f"{place}: {message}")
        else:
            lines.append(f"{place}={item['input']}: {message[0].lower()}{message[1:]}")
    return "\n".join(lines)


def refused_key(error: Exception) -> str | None:
    """Return the key that Hydra would not set, since the configuration has none of its name."""
    found = re.search(
        r"Could not override '([^']+)'", " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    )
    return found[1] if found else None


def in_words(error: Exception, words: Sequence[str] = ()) -> ConfigError:
    """Put Hydra's and OmegaConf's refusals in words, without search paths and without advice that would not help here. `words`: the
    overrides that were refused, where they are known."""
    chain = " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    if key := refused_key(error):
        return ConfigError(unknown_key(key, words))
    if found := re.search(r"Ambiguous value for argument '([^\n]+)'\n", chain):
        from lmablate.config.overrides import several_values

        return ConfigError(several_values(found[1]))
    if found := re.search(r"Sweep parameters '(.+?)' requires --multirun", chain):
        return ConfigError(f"{found[1]}: several values make a grid: add {MULTIRUN} in front of the overrides")
    if found := re.search(
        r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\s+\S+)*?)\s*(?:Config search path|$)", chain
    ):
        group, options = found[2], found[3].split()
        return ConfigError(no_option(group, found[1].removeprefix(f"{group}/"), options))
    if found := re.search(r"Could not find '([^']+)'", chain):
        return ConfigError(f"{found[1]}: no such group or option{hint(found[1].partition('/')[0])}")
    if found := re.search(r"Missing mandatory value: (\S+)", chain):
        return ConfigError(f"{found[1]}: needs a value; give it on the command line")
    said = (
        (str(error) or str(error.__cause__ or "")).split("Config search path")[0].split("See https://hydra")[0].strip()
    )
    said = re.sub(r"\s*\n\s*full_key: (.*)", r" (\1)", re.sub(r"\n\s*object_type=.*", "", said))
    return ConfigError(said or f"{type(error).__name__} of the configuration; HYDRA_FULL_ERROR=1 shows where")


EXPLAINERS.update(dict.fromkeys(("hydra", "omegaconf", "antlr4"), in_words))
