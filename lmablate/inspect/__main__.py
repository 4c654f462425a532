"""``python -m lmablate.inspect VIEW ...``: one look inside a model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lmablate.core.errors import ConfigError, exit_on_config_error

# The view's word, the module whose main(argv) shows it, and what it shows.
VIEWS = {
    "init": ("lmablate.inspect.initialisation", "gradients and signals through the stack before any training"),
    "time": ("lmablate.inspect.step_time", "where the time of a training step goes"),
    "decode": ("lmablate.inspect.decoding", "prefill and decode speed and the cache, over context length and batch"),
}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Hand the words to the view; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    listed = "\n".join(f"  {view:<8}{what}" for view, (_, what) in VIEWS.items())
    if not words or words[0] in ("-h", "--help"):
        print(
            f"lmablate.inspect: one look inside a model\n\n{listed}\n\npython -m lmablate.inspect VIEW --help says more."
        )
        return 0
    if words[0] not in VIEWS:
        raise ConfigError(f"there is no view {words[0]!r}; there are\n{listed}")
    code: int = importlib.import_module(VIEWS[words[0]][0]).main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
