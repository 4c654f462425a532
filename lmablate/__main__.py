"""``lmablate COMMAND ...`` and ``python -m lmablate COMMAND ...``: list the commands, or run one."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import sys
from collections.abc import Sequence

from lmablate.core.commands import COMMANDS, COMPLETE, listing, source, split_line
from lmablate.core.errors import exit_on_config_error


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, as ``python -m lmablate.<command>``. Return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if (line := os.environ.get(COMPLETE)) is not None:
        return _complete(line)
    if not args or args[0] in ("-h", "--help", "help"):
        print(listing())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"lmablate {importlib.metadata.version('lmablate')}")
        return 0
    return _run(*args)


def _run(command: str, *args: str) -> int:
    source(command)
    sys.argv = [f"lmablate {command}", *args]
    try:
        runpy.run_module(f"lmablate.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        raise
    return 0


def _complete(line: str) -> int:
    """Print what may follow on a command line, one a line. Commands with options of their own do it themselves."""
    (_, *words), current = split_line(line)
    if not words:
        print("\n".join(f"{name} " for name in COMMANDS if name.startswith(current)))
        return 0
    from lmablate.cli.completions import completions

    if (found := completions(words[0], words[1:], current)) is None:
        return _run(*words)
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
