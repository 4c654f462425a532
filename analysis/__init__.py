"""Figures of finished runs, one module a question. Whatever the user's matplotlib is told, they look alike (_style.py)."""

import os


def _start_matplotlib() -> None:
    """Import matplotlib. Raises ConfigError where the user's settings keep it from starting."""
    from lmablate.errors import ConfigError

    try:
        import matplotlib  # noqa: F401
    except ValueError as error:  # a backend that it does not know, or a matplotlibrc in another encoding
        asked = os.environ.get("MPLBACKEND")
        told = (
            f"MPLBACKEND={asked}" if asked and not isinstance(error, UnicodeError) else "the matplotlibrc that it found"
        )
        why = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"no figure can be drawn: matplotlib does not start with {told} ({why}); mend it, or take it away"
        ) from None


_start_matplotlib()
