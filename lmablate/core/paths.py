"""Where the configuration stands (in a checkout or installed) and where prepared data is kept."""

import argparse
import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# conf/, sweeps/ and analysis/ stand inside the package once installed, beside it in a checkout.
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF_DIR = ROOT / "conf"
SWEEPS_DIR = ROOT / "sweeps"
CHECKPOINTS = "checkpoint"  # in the folder of a run


def given_path(text: str) -> Path:
    """Return a path as a user gives it to a command: ``~`` is the home, where the shell has left it (``--out=~/x``).

    Raises ArgumentTypeError for an empty one, which a shell makes of a variable that is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; the current folder is .")
    return Path(os.path.expanduser(text))


def cache_dir() -> Path:
    """The folder for token stores and tokenizers: $LMABLATE_CACHE, else $XDG_CACHE_HOME/lmablate, else ~/.cache/lmablate."""
    if explicit := os.environ.get("LMABLATE_CACHE"):
        return given_path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (given_path(base) if base else Path.home() / ".cache") / "lmablate"
