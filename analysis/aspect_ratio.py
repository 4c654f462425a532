"""Deep and narrow or shallow and wide, at equal non-embedding parameters?

The runs: ``lmablate train sweeps=aspect_ratio``.
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

SWEEP = "aspect_ratio"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Loss over the best by d_model / n_layers; `runs` as from load_runs or study_runs."""
    return over_size(runs, SWEEP, lambda row: row["model.d_model"] / row["model.n_layers"], "d_model / n_layers")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.aspect_ratio RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
