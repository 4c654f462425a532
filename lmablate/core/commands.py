"""The commands: where they stand, what their docstrings say, and the parser that shows it.

The docstring of a command's module is its help. The first line says what it does, and the paragraph that begins with
``lmablate`` holds examples. Nothing here imports a command.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmablate.core.console import plain, prose
from lmablate.core.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# In the order in which a person needs them. A test holds that no command is missing.
GROUPS = {
    "To begin": ("demo",),
    "Train": ("plan", "train", "status"),
    "Read the results": ("report", "compare", "evaluate", "sample"),
    "Before you choose": ("presets", "survey", "budget", "scaling", "power"),
    "Further": ("inspect", "check", "export", "archive", "dashboard", "completion"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
COMPLETE = "LMABLATE_COMPLETE"  # environment variable: the line up to the cursor, which is to be completed


def source(command: str) -> Path:
    """Return the file of a command's module. Raises ConfigError for an unknown command, with the nearest."""
    if command in COMMANDS:
        for path in (f"cli/{command}.py", f"{command}.py", f"{command}/__main__.py"):
            if (PACKAGE / path).is_file():
                return PACKAGE / path
    near = difflib.get_close_matches(command, COMMANDS, 1)
    if "=" in command:
        raise ConfigError(f"{plain(command)}: overrides follow a command: lmablate train {shlex.quote(plain(command))}")
    meant = f", did you mean {near[0]}?" if near else ";"
    raise ConfigError(f"{plain(command)}: no such command{meant} lmablate lists them")


def document(command: str) -> str:
    """Return the docstring of a command's module, without importing it."""
    return prose(source(command).read_text(encoding="utf-8").split('"""', 2)[1]).strip()


def parts(text: str) -> tuple[str, str]:
    """Return what a help text says first, up to its examples, and the rest, both wrapped to the terminal."""
    paragraphs = text.split("\n\n")
    shown = [_indented(one) if _is_example(one) else one if one.startswith(" ") else _filled(one) for one in paragraphs]
    first = next((i for i, one in enumerate(paragraphs) if _is_example(one)), 0) + 1
    return "\n\n".join(shown[:first]), "\n\n".join(shown[first:])


def _is_example(paragraph: str) -> bool:
    return paragraph.lstrip().startswith(("lmablate ", 'eval "'))


def _indented(paragraph: str) -> str:
    return textwrap.indent(textwrap.dedent(paragraph), "  ")


def _filled(text: str) -> str:
    return textwrap.fill(text, columns(), break_on_hyphens=False)


def summary(command: str) -> str:
    """Return the first line of a command's docstring, without its full stop."""
    return document(command).partition("\n")[0].rstrip(".")


def listing() -> str:
    """Return every command with a line each, in groups."""
    lines = [
        "lmablate: change one thing about a language model, hold everything else equal,",
        "learn whether it matters.",
    ]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<11} {summary(name)}" for name in names)]
    return "\n".join(
        [
            *lines,
            "",
            "lmablate COMMAND --help says more; python -m lmablate.COMMAND is the same.",
            "First steps: lmablate demo, or lmablate train -m norm=rms,layer seed=0,1,2,3",
        ]
    )


def columns() -> int:
    """Return the width of help texts: that of the terminal, at most 100."""
    return min(100, max(40, shutil.get_terminal_size().columns))


class CommandParser(argparse.ArgumentParser):
    """A parser whose help begins with what the command does and its examples, and that completes its own options."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Layout, **more})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, or print completions and exit if a shell asks for them (`COMPLETE`)."""
        if COMPLETE in os.environ:
            found = _completions(
                self, list(sys.argv[1:] if args is None else args), split_line(os.environ[COMPLETE])[1]
            )
            print("\n".join(found))
            self.exit()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Return what the command does, then its usage and options."""
        text, self.description = self.description, None
        try:
            return f"{text}\n\n{super().format_help()}" if text else super().format_help()
        finally:
            self.description = text


class _Layout(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=columns())


def command_parser(command: str, text: str | None = None, **more: Any) -> CommandParser:
    """Return a parser for a command, with the docstring of its module or `text` as its help."""
    head, rest = parts(prose(text).strip() if text else document(command))
    return CommandParser(prog=f"lmablate {command}", description=head, epilog=rest, **more)


def split_line(line: str) -> tuple[list[str], str]:
    """Return the complete words of a command line, and the one that is being typed."""
    current = "" if not line or line[-1].isspace() else line.split()[-1]
    before = line[: len(line) - len(current)]
    try:
        return shlex.split(before), current
    except ValueError:  # an open quotation mark
        return before.split(), current


def _completions(parser: argparse.ArgumentParser, words: list[str], current: str) -> list[str]:
    """Return what may stand in the place of `current`: subcommands, choices of an option, options."""
    for action in parser._actions:
        verbs = action.choices if isinstance(action, argparse._SubParsersAction) else {}
        if chosen := next((word for word in words if word in verbs), None):
            return _completions(verbs[chosen], words[words.index(chosen) + 1 :], current)
    last = parser._option_string_actions.get(words[-1]) if words else None
    if last is not None and last.nargs != 0:
        names = last.choices or ()
    elif current.startswith("-"):
        names = [name for name in parser._option_string_actions if name.startswith("--")]
    else:
        names = [name for action in parser._actions if not action.option_strings for name in action.choices or ()]
    return [f"{name} " for name in names if str(name).startswith(current)]
