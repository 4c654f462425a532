"""The words of a command line that begin with dashes: ours, Hydra's, and what was meant by others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from lmablate.core.console import VERBOSE
from lmablate.core.errors import ConfigError

MULTIRUN = ("-m", "--multirun")
SWITCHES = (*MULTIRUN, "--run", "-r", "--hydra-help", "--version", "--resolve", "--shell-completion", "-sc")
VALUED = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
OPTIONAL = ("--info", "-i")  # their value may be left out
NAMES = {
    "-c": "--cfg",
    "-i": "--info",
    "-p": "--package",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
}


class Flags(NamedTuple):
    """A command line in its parts. `valued` are Hydra's flags by their long names."""

    overrides: list[str]
    switches: list[str]
    valued: dict[str, str]
    trusted: list[str]

    @property
    def several(self) -> bool:
        """Was a grid asked for?"""
        return any(flag in MULTIRUN for flag in self.switches)

    def words(self, overrides: Sequence[str]) -> list[str]:
        """As Hydra reads them: its parser wants all overrides side by side, and a flag whose value may be left out last."""
        return [*overrides, *self.switches, *(f"{name}={value}" for name, value in self.valued.items())]


def split(words: Sequence[str]) -> Flags:
    """Take a command line apart, whatever the order. Raises ConfigError for a flag that nobody knows."""
    found = Flags([], [], {}, [])
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--trust":
            package = value or (rest.pop(0) if rest and not equals else "")
            if not package:
                raise ConfigError("--trust needs the name of a package, e.g. --trust mypackage")
            found.trusted.extend(package.split(","))
        elif word in ("-v", "--verbose"):
            os.environ[VERBOSE] = "1"
        elif word == "--again":
            found.overrides.append("runtime.again=true")
        elif word in SWITCHES:
            found.switches.append(word)
        elif name in VALUED:
            if not equals and rest and _is_value(rest[0], name):
                value = rest.pop(0)
            found.valued[NAMES.get(name, name)] = _checked(name, value)
        elif name == "--experimental-rerun":
            raise ConfigError(
                "--experimental-rerun reads a pickle, which runs what it holds: give the overrides again instead"
            )
        elif word.startswith("-"):
            raise ConfigError(_unknown(word, rest))
        else:
            found.overrides.append(word)
    return found


def _is_value(word: str, flag: str) -> bool:
    return word in VALUED[flag] if flag in OPTIONAL else not word.startswith("-")


def _checked(flag: str, value: str) -> str:
    allowed = VALUED[flag]
    if not value and flag in OPTIONAL:
        return "all"
    if not value or (allowed and value not in allowed):
        got = f"got {value}" if value else "nothing follows it"
        raise ConfigError(
            f"{flag}: {got}; it takes {' or '.join(allowed) or 'a value'}, e.g. {flag} {(*allowed, 'NAME')[0]}"
        )
    return value


def _unknown(word: str, rest: Sequence[str]) -> str:
    """``--norm rms`` and ``--norm=rms`` are overrides with dashes; others are no options at all."""
    from lmablate.config.hints import hint, known_keys, options_of

    name, equals, value = word.lstrip("-").partition("=")
    key = next((k for k in (name, name.replace("-", "_")) if k in known_keys() or options_of(k)), "")
    if key:
        follows = rest[0] if rest and not equals and "=" not in rest[0] and not rest[0].startswith("-") else ""
        return f"{f'{word} {follows}'.strip()}: overrides have no dashes: write {key}={value or follows or 'VALUE'}"
    meant = hint(name.replace("-", "_"))
    nearest = meant if meant.startswith(", did") else ""
    return (
        f"{word}: no such option{nearest or ';'} there are -m (a grid), --cfg job (show the configuration), --trust PACKAGE, --again, -v "
        "and --help; everything else is key=value"
    )
