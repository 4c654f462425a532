"""Define user errors, and how every command reports them.

A command is a function that returns its exit code, decorated with :func:`exit_on_config_error`. Errors that the user
can fix (a configuration, a file that is missing, unreadable or not YAML) exit with 2; failures of the machine (a full
disk) with 1; our own errors keep their stack trace. With ``HYDRA_FULL_ERROR=1`` all errors do.
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
FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # failures of the machine, not of the request
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


# By library name: a function that turns the library's error into a user error. Modules that use the library set it.
EXPLAINERS: dict[str, Callable[[Exception], Exception]] = {}


class ConfigError(ValueError):
    """An error in the user's input. The message names the key, its value, what is allowed and the remedy. It is raised
    before any training; commands print it without a stack trace and exit with 2."""


class DataError(ConfigError):
    """An error of a run's text: missing, unreadable, empty or too short."""


def check_here() -> None:
    """Raise ConfigError if the current folder was removed, where Hydra and torch's libraries do not start."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError(
            "the current folder was removed: change to one that is there (cd), and give the command again"
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_on_config_error(main: Callable[P, int]) -> Callable[P, int]:
    """Decorate a command so that it prints errors as one paragraph and returns an exit code (module docstring). No
    secret of the environment is printed. Ctrl-C exits with 130. A failing stdout does not stop the command
    (streams.py)."""

    @wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
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
            message = explained(error)
            if message is None or os.environ.get(FULL_TRACE) == "1":
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1 if getattr(error, "errno", None) in FAILED else 2
        finally:  # also when argparse exits
            settle_folders(refused=refused)

    return wrapper


def explained(error: Exception) -> str | None:
    """Return the message of a user error, or None for an error of ours."""
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
    """Return file, position and problem of a YAML error."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or error).strip()
    if mark is None:
        return f"not YAML: {problem}"
    hint = "; indent with spaces, a tab is none" if "\\t" in problem else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: not YAML: {problem}{hint}"


def _raised_in(error: Exception) -> set[str]:
    """Return the package that defines an error, and the one that raised it."""
    packages = {type(error).__module__.partition(".")[0]}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_next is None:
            packages.add(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return packages
