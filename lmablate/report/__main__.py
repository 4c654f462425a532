"""``python -m lmablate.report``."""

import sys

from lmablate.report.command import main

if __name__ == "__main__":
    sys.exit(main())
