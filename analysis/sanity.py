"""Does the pipeline find a difference that is there, and none that is not?

The runs: ``lmablate train sweeps=sanity``.
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

SWEEP = "sanity"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves, and RoPE against itself and against none; `runs` as from load_runs or study_runs."""
    return against_baseline(runs, SWEEP, "rope")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.sanity RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
