"""How much does the head dimension matter at fixed width, parameters and FLOPs?

The runs: ``lmablate train sweeps=head_dim``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import run
from lmablate.analysis.study_figures import over_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "head_dim"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Loss over the best by head dimension; `runs` as from load_runs or study_runs."""
    return over_size(runs, SWEEP, lambda row: float(row["model.head_dim"]), "head dimension")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.head_dim RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
