"""``lmablate evaluate``: the command of this room, whose code is in lmablate/cli/evaluate.py."""

import runpy

runpy.run_module("lmablate.cli.evaluate", run_name="__main__", alter_sys=True)
