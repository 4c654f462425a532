"""Translate our grammar of overrides into Hydra's, and refuse what no grammar can read.

A stored sweep adds what it says of a ``scale``, ``double`` is ``sandwich``, keys that hold text need no quotes, and ``sweep.zip``
and ``sweep.skip`` arrange a grid. Each override is parsed here once, so that an error names the override it is in.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from omegaconf import OmegaConf

from lmablate.config.hints import MULTIRUN, hint, no_option, off_groups, options_of
from lmablate.config.quoting import as_text, parsed, text_keys
from lmablate.core.errors import ConfigError
from lmablate.core.paths import SWEEPS_DIR

# Signs that a keyboard or a word processor writes instead of those of the grammar.
LOOKALIKES = {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)} | {  # full-width forms, and others
    "、": ",",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "–": "-",
    "—": "--",
    "−": "-",
    "\u00a0": " ",
    "\u3000": " ",
}
ZIP, SKIP = "sweep.zip", "sweep.skip"

# Hydra would create these folders, and they would stay empty.
HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")


def explicit(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys that overrides set, with their values as text; None stands for null and an empty value."""
    pairs = (override.lstrip("+").partition("=") for override in overrides if not override.startswith("~"))
    return {key: None if value in ("null", "") else value for key, _, value in pairs}


def sized(overrides: Sequence[str]) -> list[str]:
    """Return a command's overrides with those by which its stored sweep differs from its ``scale``, as far as they are not given.

    They stand in front, so that the command's own win. Raises ConfigError."""
    keys = explicit(overrides)
    sweeps, scale = keys.get("sweeps"), keys.get("scale")
    if not sweeps or not scale or re.search(r"[,(\[]", sweeps):
        return list(overrides)
    if re.search(r"[,(\[]", scale):
        raise ConfigError(f"scale={scale}: a stored sweep has one size at a time; run the command once for each")
    node = OmegaConf.load(sweep_file(sweeps))
    differs = map(str, (OmegaConf.select(node, "sweep.scales") or {}).get(scale) or ())
    return [*(one for one in differs if not explicit([one]).keys() & keys.keys()), *overrides]


def rewrite(overrides: list[str]) -> list[str]:
    """Return the overrides in Hydra's grammar. Raises ConfigError, naming the override, for one that cannot be parsed."""
    _check_spaces(overrides)
    keys = explicit(overrides)
    sweeps = keys.get("sweeps")
    if sweeps and re.search(r"[,(\[]", str(sweeps)):
        raise ConfigError(
            f"sweeps={sweeps}: one stored sweep at a time, since Hydra would drop the grids of all; run the command once for each"
        )
    for key in keys:
        if "_target_" in key or "_target_" in str(keys[key]):
            raise ConfigError(
                f"{key}: a class is chosen by an option, so that the option's name says what was run; add a YAML file to conf/ for yours"
            )
        if key in HYDRAS_FOLDERS:
            raise ConfigError(f"{key}: nothing is kept there, runs are in results_dir/<run_id>; write results_dir=PATH")
    out = [_own(override) for override in _with_arrangement(overrides) if not _is_off(override)]
    for override in out:
        _check(override)
    return out


def _own(override: str) -> str:
    """Return the override with our extensions translated for Hydra."""
    key = override.lstrip("+").partition("=")[0]
    if key == "norm_position":
        return re.sub(r"\bdouble\b", "sandwich", override)
    return as_text(override) if key in text_keys() else override


def _check_spaces(args: Sequence[str]) -> None:
    """Raise ConfigError for overrides that the shell has split, such as ``norm = rms`` or ``norm=rms, layer``."""
    for i, arg in enumerate(args):
        if "=" in arg.strip("=") and not arg.startswith("="):
            continue
        before, after = args[i - 1] if i else "", args[i + 1] if i + 1 < len(args) else ""
        if arg == "=" and before and after:
            raise ConfigError(f"{before} = {after}: an override has no spaces: write {before}={after}")
        if arg.startswith("=") and before:
            raise ConfigError(f"{before} {arg}: an override has no spaces: write {before}{arg}")
        if arg.endswith("=") and after and "=" not in after:
            raise ConfigError(f"{arg} {after}: an override has no spaces: write {arg}{after}")
        if arg.endswith("=") or arg.startswith("~"):
            continue
        if before.endswith(",") or arg.startswith(","):
            raise ConfigError(
                f"{before} {arg}: the space ends the override: write {before}{arg}, or put quotes around it"
            )
        if "=" in after[:1] or (before == "=" and i > 1):
            continue  # the error is raised for its neighbour
        raise ConfigError(f"{arg or '(nothing)'}: an override is key=value, such as norm=layer{_meant(arg)}")


def _meant(arg: str) -> str:
    """Return a suggestion for an argument without a value."""
    if "＝" in arg:
        return f"; {_lookalikes(arg)}"

    return hint(arg.lstrip("+"))


def _is_off(override: str) -> bool:
    """Return True for ``preset=null``, where the group is off by default."""
    key, _, value = override.partition("=")
    return value.lower() == "null" and key in off_groups()


def _with_arrangement(overrides: Sequence[str]) -> list[str]:
    """Return overrides with ``sweep.zip=a,b`` and ``sweep.skip=a=1,b=2`` as the lists that stored sweeps hold.

    Both may be given any number of times. Raises ConfigError."""
    lists: dict[str, list[str]] = {ZIP: [], SKIP: []}
    whole: dict[str, str] = {}
    out = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key not in lists:
            out.append(override)
        elif value.startswith("["):
            whole[key] = value
        elif key == ZIP:
            lists[key].append(f"[{','.join(_parts(override, value))}]")
        else:
            pairs = [part.partition("=") for part in _parts(override, value)]
            if not all(name and equals for name, equals, _ in pairs):
                raise ConfigError(
                    f"{override}: name what is left out by its values, e.g. {SKIP}=norm=layer,activation=gelu"
                )
            lists[key].append("{" + ",".join(f"{name}:{option}" for name, _, option in pairs) + "}")
    for key, items in lists.items():
        if key in whole and items:
            raise ConfigError(f"{key} is given as a list and by itself: use one of the two forms")
        if key in whole or items:
            out.append(f"++{key}={whole.get(key) or '[' + ','.join(items) + ']'}")
    return out


def _parts(override: str, value: str) -> list[str]:
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ConfigError(f"{override}: empty between its commas; give e.g. {ZIP}=model.d_model,model.n_layers")
    return parts


def _check(override: str) -> None:
    """Raise ConfigError for an override that cannot be parsed, or for an option that is not a name."""
    parse = parsed(override)
    if parse is None:
        raise ConfigError(f"{override}: {_unreadable(override)}")
    group = parse.key_or_group
    if parse.is_delete() and group not in off_groups() and (options := options_of(group)):
        raise ConfigError(
            f"{override}: a run has one option of each group; choose another of {group}: {', '.join(options)}"
        )
    if parse.is_delete() or not (options := options_of(group)):
        return
    value = parse.value()
    for option in value.list if isinstance(value, ChoiceSweep) else [value]:
        if isinstance(option, list):
            raise ConfigError(
                f"{group}={override.partition('=')[2]}: a run has one option of {group}; several make a grid: "
                f"-m {group}={','.join(map(str, option))}"
            )
        if not isinstance(option, str | QuotedString):
            typed = override.partition("=")[2]
            shown = "null" if option is None else str(option).lower() if "," in typed else typed
            raise ConfigError(no_option(group, shown, options))


def _unreadable(override: str) -> str:
    if any(sign in override for sign in LOOKALIKES):
        return _lookalikes(override)
    key, _, value = override.partition("=")
    name = key.lstrip("+~")
    if not re.fullmatch(r"[\w$@./:-]+", name):
        return f"{name!r} is not the name of a key: an override is key=value, such as norm=layer"
    shown = value.replace("'", "\\'")
    return (
        "cannot be read: signs such as = : [ ] { } ( ) and quotes have a meaning of their own. "
        f"Where they are text, put quotes around the value: \"{key}='{shown}'\""
    )


def _lookalikes(override: str) -> str:
    """Return what to type instead of signs that only look like those of the grammar."""
    signs = sorted({sign for sign in override if sign in LOOKALIKES})
    meant = "".join(LOOKALIKES.get(sign, sign) for sign in override)
    problem = ", ".join(f"{sign!r} is not {LOOKALIKES[sign]!r}" for sign in signs)
    return f"{problem}: write {meant}, or quotes around a value that has such a sign"


def sweep_file(name: str) -> Path:
    """Return the YAML file of a stored sweep, from this project or the current folder. Raises ConfigError if there is none."""
    for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"):
        inside = Path(os.path.normpath(folder / f"{name}.yaml")).is_relative_to(folder)
        if inside and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    stored = options_of("sweeps")
    near = difflib.get_close_matches(name, stored, n=1)
    raise ConfigError(
        f"sweeps={name}: no such stored sweep{f', did you mean {near[0]}?' if near else ';'} there are {', '.join(stored) or 'none'}"
    )


def several_values(override: str) -> str:
    """Return the error message for ``norm=rms,layer`` where a single run is composed."""
    key, _, value = override.partition("=")
    message = f"{override}: several values make a grid: add {MULTIRUN} in front of the overrides (in Python, compose each one)"
    if options_of(key):
        return message
    return f"{message}. A list is written {key}=[{value}], text with a comma \"{key}='{value}'\""
