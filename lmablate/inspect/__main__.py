"""``python -m lmablate.inspect VIEW ...``: inspect one aspect of a model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lmablate.core.errors import ConfigError, exit_on_config_error

# By name of the view: the module whose main(argv) runs it, and a description.
VIEWS = {
    "init": ("lmablate.inspect.initialisation", "gradients and signals through the stack before any training"),
    "time": ("lmablate.inspect.step_time", "where the time of a training step goes"),
    "decode": ("lmablate.inspect.decoding", "prefill and decode speed and the cache, over context length and batch"),
}


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the view that the first argument names. Return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    listed = "\n".join(f"  {view:<8}{what}" for view, (_, what) in VIEWS.items())
    if not args or args[0] in ("-h", "--help"):
        print(
            f"lmablate.inspect: one look inside a model\n\n{listed}\n\npython -m lmablate.inspect VIEW --help says more."
        )
        return 0
    if args[0] not in VIEWS:
        raise ConfigError(f"there is no view {args[0]!r}; there are\n{listed}")
    code: int = importlib.import_module(VIEWS[args[0]][0]).main(args[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
