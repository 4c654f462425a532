"""``python -m lmablate.report``: write a report on finished runs."""

import sys

from lmablate.report.command import main

if __name__ == "__main__":
    sys.exit(main())
