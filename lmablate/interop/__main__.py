"""``python -m lmablate.interop``: run the export command, which is in lmablate/cli/export.py."""

import runpy

runpy.run_module("lmablate.cli.export", run_name="__main__", alter_sys=True)
