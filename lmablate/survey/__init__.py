"""Published systems: a table of them, shares and ratios over the years, and verdicts on the lecture's claims about them.

`systems` reads the table from conf/preset and systems.yaml, `judged` counts each claim of claims.yaml in it. No model is
built. ``lmablate survey --out DIR`` writes tables and figures.
"""

from lmablate.survey.judge import judged
from lmablate.survey.table import by_year, systems

__all__ = ["by_year", "judged", "systems"]
