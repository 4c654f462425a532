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


def first_line(error: BaseException) -> str:
    """What went wrong, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_words(main: Callable[P, int]) -> Callable[P, int]:
    """A command line that tells its user's mistakes in one paragraph, and exits with 2; with HYDRA_FULL_ERROR=1 a trace. It
    prints no secret of the environment."""

    @wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        from lmablate.secrets import guard_streams

        guard_streams()
        try:
            return main(*args, **kwargs)
        except ConfigError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            return 2

    return told
