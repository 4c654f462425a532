"""``lmablate export``: run lmablate/export.py, which stood here once."""

import runpy

runpy.run_module("lmablate.export", run_name="__main__", alter_sys=True)
