"""``lmablate scaling``: the command of this room, whose code is in lmablate/cli/scaling.py."""

import runpy

runpy.run_module("lmablate.cli.scaling", run_name="__main__", alter_sys=True)
