"""Do decayed embeddings or a large epsilon of AdamW make the gradient norm spike?

The runs: ``lmablate train sweeps=embedding_decay``.
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

SWEEP = "embedding_decay"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Each change against decay of everything at the same rate; `runs` as from load_runs or study_runs."""
    return against_baseline(runs, SWEEP, "both decay")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.embedding_decay RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
