"""Check an option of an axis, yours or the project's.

  lmablate check attention=mine --trust mypackage
  lmablate check norm=layer --only gradients

The first axis among the overrides is checked, in a small model with all of them. Takes about a minute. Exits with 0
when all holds, 1 when something does not, 2 for a configuration that cannot be run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from lmablate.check import Check, Finding, Subject
from lmablate.cli.arguments import add_trust
from lmablate.cli.front_door import trust_packages
from lmablate.config.composition import rewrite
from lmablate.config.untrusted_yaml import check_folders
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.paths import CONF_DIR, SWEEPS_DIR

_NAME, _RESULT = 14, 14  # the widths of the first two columns


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("check")
    parser.add_argument("overrides", nargs="*", metavar="AXIS=OPTION", help="e.g. attention=mine attention.window=8")
    add_trust(parser)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="run this check; may be repeated")
    parser.add_argument("--list", action="store_true", help="list the checks and what they ask")
    return parser


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks of a command line. Return 0, 1 or 2 as the help says."""
    args = _parser().parse_intermixed_args(argv)
    import torch

    from lmablate.check import CHECKS, subject_of

    if args.list:
        for each in CHECKS.values():
            _row(each.name, "", each.asks)
        return 0
    only = [name for names in args.only for name in names.split(",")]
    if wrong := [name for name in only if name not in CHECKS]:
        raise ConfigError(f"--only {wrong[0]}: no such check; there are {', '.join(CHECKS)}")
    check_folders([Path.cwd() / "conf", Path.cwd() / "sweeps"], own=(CONF_DIR, SWEEPS_DIR))
    trust_packages(args.trust)
    torch.set_num_threads(1)
    subject = subject_of(rewrite(args.overrides))
    subject.cfg  # noqa: B018 - refused before anything is printed
    return _run(subject, [CHECKS[name] for name in only] or list(CHECKS.values()))


def _run(subject: Subject, checks: Sequence[Check]) -> int:
    """Print a row for each check, then the failures. Return the exit code."""
    from lmablate.check import FAILS

    print(f"{subject.axis}={subject.option}: {subject.where()}\n")
    failed: list[tuple[Check, Finding]] = []
    began = time.monotonic()
    for each in checks:
        print(f"{each.name:<{_NAME}}", end="", flush=True)
        finding = each(subject)
        _row("", finding.status, "see below" if finding.status == FAILS else finding.note, begun=True)
        if finding.status == FAILS:
            failed.append((each, finding))
    for each, finding in failed:
        print()
        _paragraph(f"{each.name}: {finding.note}")
        for label, text in (("where", subject.where()), ("cost", each.cost), ("mend", each.mend)):
            _paragraph(f"  {label:<6}{text}", indent=8)
    took = f"{time.monotonic() - began:.0f} s"
    ended = f"{len(failed)} of {len(checks)} checks do not hold" if failed else "all that was asked holds"
    print(f"\n{ended} ({took})")
    return 1 if failed else 0


def _width() -> int:
    return min(100, shutil.get_terminal_size().columns)


def _row(name: str, status: str, note: str, *, begun: bool = False) -> None:
    """Print a row of the table; with `begun`, the name is already printed."""
    left = _NAME + (_RESULT if status else 0)
    lines = textwrap.wrap(note, max(20, _width() - left)) or [""]
    head = (status.ljust(_RESULT) if status else "") if begun else name.ljust(_NAME)
    print((head + lines[0]).rstrip())
    for line in lines[1:]:
        print(" " * left + line)


def _paragraph(text: str, indent: int = 2) -> None:
    print(textwrap.fill(text, _width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    sys.exit(main())
