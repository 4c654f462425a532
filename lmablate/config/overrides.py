"""The house's own grammar of overrides, brought into Hydra's before Hydra reads them, and what no grammar can read.

``scale=`` picks the size of a stored sweep, ``double`` is ``sandwich``, keys that hold text need no quotes, and ``sweep.zip``
and ``sweep.skip`` arrange a grid. Each override is parsed here once, so that a mistake is told of the override it is in.
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

# What a keyboard or a word processor writes for signs of the grammar.
LOOKALIKES = {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)} | {  # of full width, and others
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

# Where Hydra would make folders of its own, which stay empty.
HYDRAS_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")


def explicit(words: Sequence[str]) -> dict[str, Any]:
    """Return the keys set by override strings, with their values as text; a value of null counts as not set."""
    pairs = (word.lstrip("+").partition("=") for word in words if not word.startswith("~"))
    return {key: None if value in ("null", "") else value for key, _, value in pairs}


def rewrite(words: list[str]) -> list[str]:
    """Return overrides in Hydra's grammar, each of which parses. Raises ConfigError that names the override."""
    _check_spaces(words)
    keys = explicit(words)
    sweeps, scale = keys.get("sweeps"), keys.get("scale")
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
    out = [_own(word) for word in _arrangement(words) if not _is_off(word)]
    if "scale" in keys:
        out = [word for word in out if not word.startswith("scale=")]
        # in front, so that what the user types has the last word
        out = _scale_overrides(sweeps, scale) + out
    for word in out:
        _check(word)
    return out


def _own(word: str) -> str:
    """One override, with what the house allows and Hydra does not."""
    key = word.lstrip("+").partition("=")[0]
    if key == "norm_position":
        return re.sub(r"\bdouble\b", "sandwich", word)
    return as_text(word) if key in text_keys() else word


def _check_spaces(words: Sequence[str]) -> None:
    """Refuse what the shell has taken apart: ``norm = rms``, ``norm=rms, layer``; and show it whole."""
    for i, word in enumerate(words):
        if "=" in word.strip("=") and not word.startswith("="):
            continue
        before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        if word == "=" and before and after:
            raise ConfigError(f"{before} = {after}: an override has no spaces: write {before}={after}")
        if word.startswith("=") and before:
            raise ConfigError(f"{before} {word}: an override has no spaces: write {before}{word}")
        if word.endswith("=") and after and "=" not in after:
            raise ConfigError(f"{word} {after}: an override has no spaces: write {word}{after}")
        if word.endswith("=") or word.startswith("~"):
            continue
        if before.endswith(",") or word.startswith(","):
            raise ConfigError(
                f"{before} {word}: the space ends the override: write {before}{word}, or put quotes around it"
            )
        if "=" in after[:1] or (before == "=" and i > 1):
            continue  # its neighbour is told
        raise ConfigError(f"{word or '(nothing)'}: an override is key=value, such as norm=layer{_meant(word)}")


def _meant(word: str) -> str:
    """What a word without a value was likely to be."""
    if "＝" in word:
        return f"; {_lookalikes(word)}"

    return hint(word.lstrip("+"))


def _is_off(word: str) -> bool:
    """``preset=null``: a group that is off by default, left off."""
    key, _, value = word.partition("=")
    return value.lower() == "null" and key in off_groups()


def _arrangement(words: Sequence[str]) -> list[str]:
    """``sweep.zip=a,b`` and ``sweep.skip=a=1,b=2``, given any number of times, as the lists that stored sweeps hold."""
    found: dict[str, list[str]] = {ZIP: [], SKIP: []}
    whole: dict[str, str] = {}
    out = []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key not in found:
            out.append(word)
        elif value.startswith("["):
            whole[key] = value
        elif key == ZIP:
            found[key].append(f"[{','.join(_parts(word, value))}]")
        else:
            pairs = [part.partition("=") for part in _parts(word, value)]
            if not all(name and equals for name, equals, _ in pairs):
                raise ConfigError(
                    f"{word}: name what is left out by its values, e.g. {SKIP}=norm=layer,activation=gelu"
                )
            found[key].append("{" + ",".join(f"{name}:{option}" for name, _, option in pairs) + "}")
    for key, items in found.items():
        if key in whole and items:
            raise ConfigError(f"{key} is given as a list and by itself: use one of the two forms")
        if key in whole or items:
            out.append(f"++{key}={whole.get(key) or '[' + ','.join(items) + ']'}")
    return out


def _parts(word: str, value: str) -> list[str]:
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ConfigError(f"{word}: empty between its commas; give e.g. {ZIP}=model.d_model,model.n_layers")
    return parts


def _check(word: str) -> None:
    """Raise ConfigError for an override that does not parse, or for an option that is no word."""
    override = parsed(word)
    if override is None:
        raise ConfigError(f"{word}: {_unreadable(word)}")
    group = override.key_or_group
    if override.is_delete() and group not in off_groups() and (options := options_of(group)):
        raise ConfigError(
            f"{word}: a run has one option of each group; choose another of {group}: {', '.join(options)}"
        )
    if override.is_delete() or not (options := options_of(group)):
        return
    value = override.value()
    for option in value.list if isinstance(value, ChoiceSweep) else [value]:
        if isinstance(option, list):
            raise ConfigError(
                f"{group}={word.partition('=')[2]}: a run has one option of {group}; several make a grid: "
                f"-m {group}={','.join(map(str, option))}"
            )
        if not isinstance(option, str | QuotedString):
            typed = word.partition("=")[2]
            said = "null" if option is None else str(option).lower() if "," in typed else typed
            raise ConfigError(no_option(group, said, options))


def _unreadable(word: str) -> str:
    if any(sign in word for sign in LOOKALIKES):
        return _lookalikes(word)
    key, _, value = word.partition("=")
    name = key.lstrip("+~")
    if not re.fullmatch(r"[\w$@./:-]+", name):
        return f"{name!r} is not the name of a key: an override is key=value, such as norm=layer"
    shown = value.replace("'", "\\'")
    return (
        "cannot be read: signs such as = : [ ] { } ( ) and quotes have a meaning of their own. "
        f"Where they are text, put quotes around the value: \"{key}='{shown}'\""
    )


def _lookalikes(word: str) -> str:
    """What to type where a sign is not the one it looks like."""
    found = sorted({sign for sign in word if sign in LOOKALIKES})
    meant = "".join(LOOKALIKES.get(sign, sign) for sign in word)
    said = ", ".join(f"{sign!r} is not {LOOKALIKES[sign]!r}" for sign in found)
    return f"{said}: write {meant}, or quotes around a value that has such a sign"


def sweep_file(name: str) -> Path:
    """Return the YAML of a stored sweep, of this project or of the current folder."""
    for folder in (SWEEPS_DIR, Path.cwd() / "sweeps"):
        inside = Path(os.path.normpath(folder / f"{name}.yaml")).is_relative_to(folder)
        if inside and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    stored = options_of("sweeps")
    near = difflib.get_close_matches(name, stored, n=1)
    raise ConfigError(
        f"sweeps={name}: no such stored sweep{f', did you mean {near[0]}?' if near else ';'} there are {', '.join(stored) or 'none'}"
    )


def _scale_overrides(sweeps: str | None, scale: str | None) -> list[str]:
    if not sweeps:
        raise ConfigError(
            f"scale={scale} picks the size of a stored sweep: add sweeps=<question>, or set model=, trainer.steps= yourself"
        )
    node = OmegaConf.load(sweep_file(sweeps))
    sizes = OmegaConf.select(node, "sweep.scales") or {}
    if scale not in sizes:
        raise ConfigError(f"scale={scale}: sweeps={sweeps} has the sizes {', '.join(map(str, sizes)) or '(none)'}")
    return [str(word) for word in sizes[scale]]


def several_values(word: str) -> str:
    """Say what to do about ``norm=rms,layer`` where one run is made."""
    key, _, value = word.partition("=")
    said = f"{word}: several values make a grid: add {MULTIRUN} in front of the overrides (in Python, compose each one)"
    if options_of(key):
        return said
    return f"{said}. A list is written {key}=[{value}], text with a comma \"{key}='{value}'\""
