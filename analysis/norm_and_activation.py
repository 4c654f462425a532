"""Do the norm and the activation matter at equal parameters and tokens? RMSNorm or LayerNorm, SwiGLU or GELU, four seeds.

The runs: ``lmablate train sweeps=norm_and_activation``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import run
from lmablate.analysis.curves import comparison
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "norm_and_activation"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Loss curves, and the final validation loss of every arm and seed; frames as from load_runs and load_history."""
    return comparison(runs, history, sweep_question(SWEEP) or SWEEP)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.norm_and_activation RESULTS_DIR --out FILE``"""
    from lmablate.results import load_history, load_runs

    return run(lambda results_dir: figure(load_runs(results_dir), load_history(results_dir)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
