"""Do deep post-norm stacks fail to train, and do depth-scaled residuals mend them?

The runs: ``lmablate train sweeps=deep_post_norm``.
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

SWEEP = "deep_post_norm"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves, and post-norm and DeepNorm against pre-norm at each depth; `runs` as from load_runs or study_runs."""
    return against_baseline(runs, SWEEP, "pre")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.deep_post_norm RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
