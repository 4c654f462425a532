"""What a command says beside its output: notes of ours, warnings of other packages, all on stderr."""

from __future__ import annotations

import logging
import sys

from lmablate.core.streams import guard_streams


def configure_logging() -> None:
    """Print our own notes, and of other packages only warnings; no secret of the environment."""
    guard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lmablate").setLevel(logging.INFO)
