"""Locate the configuration (in a checkout or installed) and the folder of prepared data."""

import argparse
import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# conf/, sweeps/ and analysis/ are inside the package once installed, and next to it in a checkout.
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF_DIR = ROOT / "conf"
SWEEPS_DIR = ROOT / "sweeps"
CHECKPOINTS = "checkpoint"  # name of the folder in a run's folder


def given_path(text: str) -> Path:
    """Return a path argument of a command, with ``~`` expanded where the shell has not done it (``--out=~/x``). Raises
    ArgumentTypeError for an empty path, which a shell makes from an unset variable."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; the current folder is .")
    return Path(os.path.expanduser(text))


def cache_dir() -> Path:
    """Return the folder for token stores and tokenizers: $LMABLATE_CACHE, else $XDG_CACHE_HOME/lmablate, else ~/.cache/lmablate."""
    if explicit := os.environ.get("LMABLATE_CACHE"):
        return given_path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (given_path(base) if base else Path.home() / ".cache") / "lmablate"
