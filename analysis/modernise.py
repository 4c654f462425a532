"""What made the Transformer of 2017 into today's, and do the single gains add up?

The runs: ``lmablate train sweeps=modernise``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import run
from lmablate.analysis.study_figures import against_baseline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "modernise"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves; each step on the way from 2017, and each one undone, against today's stack; `runs` as from load_runs."""
    return against_baseline(runs, SWEEP, "today")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.modernise RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
