"""``lmablate scaling``: the command of this room, whose code is in lmablate/cli/scaling.py."""

import os
import runpy

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices of a fit are tiny: threads only wait for one another
runpy.run_module("lmablate.cli.scaling", run_name="__main__", alter_sys=True)
