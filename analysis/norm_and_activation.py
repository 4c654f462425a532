"""Does RMSNorm or LayerNorm, and SwiGLU or GELU, give the lower loss at equal parameters and equal tokens?

Sweep: sweeps/norm_and_activation.yaml (norm = rms, layer; activation = swiglu, gelu; 2 seeds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from lmablate.analysis._style import run
from lmablate.analysis.curves import comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "RMSNorm or LayerNorm, SwiGLU or GELU: which has the lower loss?"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """Loss curves, and the final validation loss of every arm and seed; frames as from load_runs and load_history."""
    return comparison(runs, history, QUESTION)


def main() -> None:
    """``python -m lmablate.analysis.norm_and_activation RESULTS_DIR --out FILE``"""
    from lmablate.results import load_history, load_runs

    run(lambda results_dir: figure(load_runs(results_dir), load_history(results_dir)), QUESTION)


if __name__ == "__main__":
    main()
