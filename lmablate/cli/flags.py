"""Parse the flags of a command line that begin with dashes: ours, Hydra's, and likely mistakes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from lmablate.core.console import EXPLAIN, VERBOSE
from lmablate.core.errors import ConfigError

# Those that a user needs, with their help.
OPTIONS = {
    "-m": "a grid: every combination of the values that commas separate",
    "--cfg job": "print the configuration with all its keys, and run nothing",
    "--trust PACKAGE": "allow parts from a package of your own",
    "--again": "train finished runs anew",
    "--explain": "say more: what the columns mean, and what was decided on the way",
    "--help": "show this",
}
MULTIRUN = ("-m", "--multirun")
SWITCHES = (*MULTIRUN, "--run", "-r", "--hydra-help", "--version", "--resolve", "--shell-completion", "-sc")
VALUED = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
OPTIONAL = ("--info", "-i")  # flags whose value may be left out
NAMES = {
    "-c": "--cfg",
    "-i": "--info",
    "-p": "--package",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
}


class Flags(NamedTuple):
    """A parsed command line. `valued` maps Hydra's flags, by their long names, to values."""

    overrides: list[str]
    switches: list[str]
    valued: dict[str, str]
    trusted: list[str]

    @property
    def multirun(self) -> bool:
        """Return True if several runs were requested with ``-m``."""
        return any(flag in MULTIRUN for flag in self.switches)

    def hydra_args(self, overrides: Sequence[str]) -> list[str]:
        """Return the arguments in the order that Hydra's parser needs.

        All overrides come together, and a flag whose value may be left out comes last."""
        return [*overrides, *self.switches, *(f"{name}={value}" for name, value in self.valued.items())]


def parse_flags(args: Sequence[str]) -> Flags:
    """Parse a command line, in any order. Raises ConfigError for an unknown flag."""
    flags = Flags([], [], {}, [])
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        if name == "--trust":
            package = value or (rest.pop(0) if rest and not equals else "")
            if not package:
                raise ConfigError("--trust needs the name of a package, e.g. --trust mypackage")
            flags.trusted.extend(package.split(","))
        elif arg in EXPLAIN:
            os.environ[VERBOSE] = "1"
        elif arg == "--again":
            flags.overrides.append("runtime.again=true")
        elif arg in SWITCHES:
            flags.switches.append(arg)
        elif name in VALUED:
            if not equals and rest and _is_value(rest[0], name):
                value = rest.pop(0)
            flags.valued[NAMES.get(name, name)] = _checked(name, value)
        elif name == "--experimental-rerun":
            raise ConfigError(
                "--experimental-rerun reads a pickle, which runs what it holds: give the overrides again instead"
            )
        elif arg.startswith("-"):
            raise ConfigError(_unknown(arg, rest))
        else:
            flags.overrides.append(arg)
    return flags


def _is_value(arg: str, flag: str) -> bool:
    return arg in VALUED[flag] if flag in OPTIONAL else not arg.startswith("-")


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


def _unknown(arg: str, rest: Sequence[str]) -> str:
    """Return the error message for ``--norm rms`` and ``--norm=rms``, overrides with dashes, and for unknown flags."""
    from lmablate.config.hints import hint, known_keys, options_of

    name, equals, value = arg.lstrip("-").partition("=")
    key = next((k for k in (name, name.replace("-", "_")) if k in known_keys() or options_of(k)), "")
    if key:
        follows = rest[0] if rest and not equals and "=" not in rest[0] and not rest[0].startswith("-") else ""
        return f"{f'{arg} {follows}'.strip()}: overrides have no dashes: write {key}={value or follows or 'VALUE'}"
    meant = hint(name.replace("-", "_"))
    nearest = meant if meant.startswith(", did") else ""
    return f"{arg}: no such option{nearest or ';'} there are {', '.join(OPTIONS)}; everything else is key=value"
