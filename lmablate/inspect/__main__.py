"""Look inside a model: signals, step time, decoding speed.

lmablate inspect init norm_position=pre,post norm=rms,layer --depths 6,12 --out init
lmablate inspect time block_layout=serial,parallel --parts
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lmablate.core.commands import command_parser, document
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
    if not args or args[0] not in VIEWS:
        return _help(args)
    code: int = importlib.import_module(VIEWS[args[0]][0]).main(args[1:])
    return code


def _help(args: Sequence[str]) -> int:
    """Print the help, if `args` ask for it or are empty. Raises ConfigError for a view that there is none of."""
    listed = "\n".join(f"  {view:<8}{what}" for view, (_, what) in VIEWS.items())
    if args and not args[0].startswith("-"):
        raise ConfigError(f"there is no view {args[0]!r}; there are\n{listed}")
    about = f"{document('inspect')}\n\n{listed}\n\nlmablate inspect VIEW --help says more."
    parser = command_parser("inspect", about)
    parser.add_argument("view", choices=VIEWS, metavar="VIEW", help="one of these")
    parser.parse_args(args or ["--help"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
