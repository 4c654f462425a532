"""Configure logging: our messages and other packages' warnings, all on stderr."""

from __future__ import annotations

import logging
import sys

from lmablate.core.streams import guard_streams


def configure_logging() -> None:
    """Log lmablate at INFO and others at WARNING; redact secrets of the environment."""
    guard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lmablate").setLevel(logging.INFO)
