"""Does the largest attention logit at 5 % of training foretell which runs diverge?

The runs: ``lmablate train sweeps=logit_growth``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lmablate.analysis._style import arm_styles, entitle, message, new_figure, run, style
from lmablate.analysis.study_figures import NOTHING, lost_words, plain_log
from lmablate.claims.statistics import EARLY_LOGIT, early_logit_auc
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP = "logit_growth"


def figure(runs: pd.DataFrame, history: pd.DataFrame | None = None) -> Figure:
    """The largest attention logit of each run at 5 % of training, over its peak learning rate; a cross: the run diverged later. Below:
    the area under the ROC curve."""
    if EARLY_LOGIT not in runs or (known := runs[runs[EARLY_LOGIT].notna()]).empty:
        return message(NOTHING.format(SWEEP))
    known = known.assign(trick=known["arm"].str.partition(",")[0])
    styles = arm_styles(sorted(set(known["trick"])))
    with style():
        figure = new_figure(height=4.2)
        axes = figure.subplots()
        for number, (trick, look) in enumerate(styles.items()):
            own = known[known["trick"] == trick]
            beside = own["optim.lr"] * 1.02 ** (number - (len(styles) - 1) / 2)  # arms of one rate side by side
            for lost, marker in ((False, "o"), (True, "x")):
                some = (own["status"] == "diverged") == lost
                axes.plot(beside[some], own.loc[some, EARLY_LOGIT], marker, ms=6, mfc="none", mec=look.color, mew=1.4,
                          label=f"{trick}, {'diverged' if lost else 'finished'}")  # fmt: skip
        axes.set_yscale("log")
        plain_log(axes, sorted(set(known["optim.lr"])))
        axes.set(xlabel="peak learning rate", title="Largest attention logit at 5 % of training")
        axes.legend(loc="best", ncols=len(styles))
        found = early_logit_auc(known.to_dict("records"))
        area = found.problem
        if found.value is not None and found.interval:
            area = "area under the ROC curve {:.3f}, 95 % interval {:.3f} to {:.3f}, {} runs".format(
                found.value, *found.interval, found.n
            )
        finished = set(known.loc[known["status"] == "completed", "arm"])
        lost_arms = [arm for arm in dict.fromkeys(known["arm"]) if arm not in finished]
        entitle(figure, sweep_question(SWEEP) or SWEEP, area + lost_words(lost_arms))
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m lmablate.analysis.logit_growth RESULTS_DIR --out FILE``"""
    from lmablate.analysis._studies import load

    return run(lambda results_dir: figure(load(results_dir, SWEEP)), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
