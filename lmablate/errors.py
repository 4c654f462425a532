"""The one error type for input that cannot be run."""


class ConfigError(ValueError):
    """Bad input from the user: the message says which key, what it got, what is allowed and how to mend it.

    Raised before any training; the command line prints it without a stack trace and exits with 2.
    """


class DataError(ConfigError):
    """Text that is missing, unreadable, empty or too short for the run that asks for it."""
