"""What does tying input and output embeddings cost, and what is it worth at equal total parameters?

The runs: ``lmablate train sweeps=tying``.
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

SWEEP = "tying"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Tuning curves, and tied embeddings against untied ones of the same width or size; `runs` as from load_runs or study_runs."""
    return against_baseline(runs, SWEEP, "untied")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.tying RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
