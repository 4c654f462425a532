"""What cannot be run, in the user's words, and the one place where every command says so.

A command is a function that returns its exit code, under :func:`in_words`. What is the user's to mend (a configuration, a file
that is missing, unreadable or no YAML) exits with 2; a machine that failed (a full disk) with 1; an error that is ours keeps
its stack trace. With ``HYDRA_FULL_ERROR=1`` all of them do.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")
FULL_TRACE = "HYDRA_FULL_ERROR"
INTERRUPTED = 130
FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of the machine: what was asked for was right
MENDS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "permission denied: ask its owner for access (chmod), or choose another path",
    errno.EPERM: "not permitted: ask its owner, or choose another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "a folder, and a file is needed",
    errno.EEXIST: "there is already something of this name",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.ENOSPC: "the disk is full: make room, or write to another one, and give the command again",
    errno.EDQUOT: "your quota of the disk is used up: make room, or write elsewhere, and give the command again",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many open files (ulimit -n)",
}


# By the name of a library: what makes an error of its own one in the user's words. Whoever uses the library sets it.
EXPLAINERS: dict[str, Callable[[Exception], Exception]] = {}


class ConfigError(ValueError):
    """Bad input from the user: the message says which key, what it got, what is allowed and how to mend it.

    Raised before any training; the command line prints it without a stack trace and exits with 2.
    """


class DataError(ConfigError):
    """Text that is missing, unreadable, empty or too short for the run that asks for it."""


def check_here() -> None:
    """Raise ConfigError where the current folder was removed: Hydra and torch's libraries do not start in such a place."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError(
            "the current folder was removed: change to one that is there (cd), and give the command again"
        ) from None


def first_line(error: BaseException) -> str:
    """What went wrong, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_words(main: Callable[P, int]) -> Callable[P, int]:
    """Make a command of a function: mistakes and failures are told in one paragraph, with an exit code (module docstring).

    No secret of the environment is printed. Ctrl-C exits with 130; what becomes of stdout ends nothing (streams.py).
    """

    @wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        from lmablate.core.files import settle_folders
        from lmablate.core.streams import guard_streams

        guard_streams()
        refused = True
        try:
            check_here()
            code = main(*args, **kwargs)
            refused = bool(code)
            return code
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            said = explained(error)
            if said is None or os.environ.get(FULL_TRACE) == "1":
                raise
            print(f"error: {said}", file=sys.stderr)
            return 1 if getattr(error, "errno", None) in FAILED else 2
        finally:  # also where argparse leaves
            settle_folders(refused=refused)

    return told


def explained(error: Exception) -> str | None:
    """Return what an error says to a user; None for one that is ours."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8: {error.reason} at byte {error.start:,}; save it as UTF-8"
    if isinstance(error, UnicodeEncodeError):
        sign = error.object[error.start : error.start + 1]
        return f"{sign!a} cannot be written in the encoding {error.encoding}: set PYTHONIOENCODING=utf-8"
    if _is_yaml(error):
        return _of_yaml(error)
    for package in _raised_in(error) & EXPLAINERS.keys():
        return str(EXPLAINERS[package](error))
    return None


def _of_the_system(error: OSError) -> str:
    reason = MENDS.get(error.errno or 0) or (error.strerror or str(error) or type(error).__name__).lower()
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names) or 'the output'}: {reason}" if names or error.errno in FAILED else reason


def _is_yaml(error: Exception) -> bool:
    yaml = sys.modules.get("yaml")
    return yaml is not None and isinstance(error, yaml.YAMLError)


def _of_yaml(error: Exception) -> str:
    """File, line and what is wrong there."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or error).strip()
    if mark is None:
        return f"not YAML: {problem}"
    hint = "; indent with spaces, a tab is none" if "\\t" in problem else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: not YAML: {problem}{hint}"


def _raised_in(error: Exception) -> set[str]:
    """The package that an error is of, and the one that raised it."""
    found = {type(error).__module__.partition(".")[0]}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_next is None:
            found.add(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return found
