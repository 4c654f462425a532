"""Where the configuration stands (in a checkout or installed) and where prepared data is kept."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# conf/, sweeps/ and analysis/ stand inside the package once installed, beside it in a checkout.
ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF_DIR = ROOT / "conf"
SWEEPS_DIR = ROOT / "sweeps"


def cache_dir() -> Path:
    """The folder for token stores and tokenizers: $LMABLATE_CACHE, else $XDG_CACHE_HOME/lmablate, else ~/.cache/lmablate."""
    if explicit := os.environ.get("LMABLATE_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lmablate"
