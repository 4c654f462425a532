"""Figures of finished runs, one module a question. Whatever the user's matplotlib is told, they look alike (_style.py)."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _start_matplotlib() -> None:
    """Import matplotlib; without the user's settings where these keep it from starting, since figures take nothing from them."""
    try:
        import matplotlib
    except (
        ValueError,
        OSError,
    ):  # an unknown backend, a matplotlibrc in another encoding, a current folder that is gone
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # half of it
        with _no_settings():
            import matplotlib  # noqa: F401


@contextmanager
def _no_settings() -> Iterator[None]:
    """Have matplotlib look for its settings where there are none: it looks into the current folder first, then at MATPLOTLIBRC."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # as a file: it may have no name any more
    backend, file = os.environ.pop("MPLBACKEND", None), os.environ.get("MATPLOTLIBRC")
    os.environ["MATPLOTLIBRC"] = os.devnull
    os.chdir(Path(__file__).parent)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        for name, value in (("MPLBACKEND", backend), ("MATPLOTLIBRC", file)):
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


_start_matplotlib()
