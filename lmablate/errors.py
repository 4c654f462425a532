"""The one error type for input that cannot be run."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


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


def in_words(main: Callable[P, int]) -> Callable[P, int]:
    """A command line that tells its user's mistakes in one paragraph, and exits with 2; with HYDRA_FULL_ERROR=1 a trace. It
    prints no secret of the environment."""

    @wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        from lmablate.streams import guard_streams

        guard_streams()
        try:
            check_here()
            return main(*args, **kwargs)
        except ConfigError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            return 2

    return told
