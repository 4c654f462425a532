"""Write a page with verdicts, figures and tables from finished runs.

  lmablate report results
  lmablate report results others --out page --format markdown

The folder gets ``index.html`` (it opens without a network; ``report.md`` with --format markdown), figures/, tables/*.csv
and verdicts.json: the claims that the runs touch, each with its verdict, every comparison of two arms, and the noise.
"""

import sys

from lmablate.report.command import main

if __name__ == "__main__":
    sys.exit(main())
