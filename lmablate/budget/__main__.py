"""``lmablate budget``: the command of this room, whose code is in lmablate/cli/budget.py."""

import runpy

runpy.run_module("lmablate.cli.budget", run_name="__main__", alter_sys=True)
