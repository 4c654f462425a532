"""``python -m lmablate.interop``: the command of this room, which stands above it in lmablate/cli/export.py."""

import runpy

runpy.run_module("lmablate.cli.export", run_name="__main__", alter_sys=True)
