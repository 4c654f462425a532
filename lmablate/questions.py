"""The questions of a report: the finished runs of each stored sweep on their own, what they say, and what is missing.

Arms are told apart, compared and warned of within a question. Parameters, seeds and tokens that differ between two studies
are no fault of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmablate.arms import is_missing, keys
from lmablate.claims.reading import EVALUATED

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
TUNED = ("tune", "search")


@dataclass(frozen=True, eq=False)
class Question:
    """`name`: the stored sweep, None for runs of no sweep. `runs`: those that are compared, with their arms (as from
    study_report.shown); `tuned`: those that only chose a learning rate. `comparisons` and `rates` as from study_report,
    `missing` and `warnings`: sentences."""

    name: str | None
    runs: pd.DataFrame
    tuned: pd.DataFrame
    comparisons: list[Row]
    rates: list[Row]
    missing: list[str]
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def arms(self) -> pd.DataFrame:
        from lmablate.summary import arms_table

        return arms_table(self.runs)

    @cached_property
    def notices(self) -> list[str]:
        """What stands between these runs and a conclusion, of this question alone."""
        from lmablate.summary import notices

        return [*notices(self.runs, self.arms), *self.warnings]

    @cached_property
    def varied(self) -> str:
        """What its arms differ in, in words."""
        from lmablate.summary import question

        return question(self.runs)

    @cached_property
    def title(self) -> str:
        """What it asks: in the words of the stored sweep, or of what its arms differ in."""
        from lmablate.summary import sweep_question

        return (self.name and sweep_question(self.name)) or self.varied


def questions(
    every: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Row],
    history: pd.DataFrame,
    claims: Sequence[Row] = (),
) -> list[Question]:
    """One question for each sweep of `every` (as from claims.reading.evidence), by name, and one for the runs of none."""
    recorded = set(history["run_id"])
    names = sorted({str(name) for name in keys(every, "sweep") if name is not None})
    found = [_question(name, every, studies, unfinished, recorded, claims) for name in names]
    return found + ([_question(None, every, studies, (), recorded, ())] if every["sweep"].isna().any() else [])


def without_runs(studies: Sequence[Mapping[str, Any]], asked: Sequence[Question]) -> list[str]:
    """What to say of studies that have no finished run at all, and so no section."""
    known = {question.name for question in asked}
    return [
        f"{study['sweep']}: none of the {len({use['run_id'] for use in study['runs']})} runs of this study has a result. The same "
        "training command makes them."
        for study in studies
        if study["sweep"] not in known and study["runs"]
    ]


def _question(
    name: str | None,
    every: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Row],
    recorded: set[str],
    claims: Sequence[Row],
) -> Question:
    from lmablate.common_targets import on_common_targets
    from lmablate.study_notices import STAGES, missing, study_notices
    from lmablate.study_report import compared, sensitivities, shown

    rows = every[[one == name for one in keys(every, "sweep")]].reset_index(drop=True)
    own = [study for study in studies if study["sweep"] == name]
    rows.attrs.update(every.attrs | {"searched": _searched(own, studies)})
    runs = on_common_targets(shown(rows))
    tuned = rows[rows["stage"].isin(TUNED)] if "stage" in rows and len(rows) > len(runs) else rows[:0]
    rates = sensitivities(rows, own)
    return Question(
        name, runs, tuned, compared(runs, own), rates,
        missing=[
            *missing(every, own, unfinished, stages=tuple(STAGES)),
            *_missing(rows, own, recorded, claims),
        ],
        warnings=study_notices(every, own, unfinished, rates),
    )  # fmt: skip


def _searched(own: Sequence[Mapping[str, Any]], studies: Sequence[Mapping[str, Any]]) -> int:
    """How many evaluation runs of these studies evidence() left out because a search was guided by them."""
    guided = {use["run_id"] for study in studies if study.get("search") for use in study["runs"]}
    return len({use["run_id"] for study in own for use in study["runs"] if use["stage"] in EVALUATED} & guided)


def _missing(
    rows: pd.DataFrame,
    own: Sequence[Mapping[str, Any]],
    recorded: set[str],
    claims: Sequence[Row],
) -> list[str]:
    """Runs without records, a study that is not done, and claims that could not be judged."""
    from lmablate.summary import sweep_claims

    found = [
        f"The study is not done: it is at the stage {study['stage']}."
        for study in own
        if study.get("stage") not in (None, "done")
    ]
    if not own and "stage" in rows and rows["stage"].notna().any():
        found.append(
            f"studies/{rows['sweep'].iloc[0]}.json is not there, so it is unknown which runs this study asked for and how it tuned."
        )
    silent = sorted(set(rows["run_id"]) - recorded)
    if silent:
        named = ", ".join(silent[:6]) + (f" and {len(silent) - 6} more" if len(silent) > 6 else "")
        found.append(f"No training records (history.jsonl), so no curve, of {named}.")
    name = next((one for one in keys(rows, "sweep") if not is_missing(one)), None)
    about = set(sweep_claims(str(name))) if name is not None else set()
    return found + [
        f"No verdict on claim {claim['id']}: {claim['reason']}."
        for claim in claims
        if claim["id"] in about and claim["verdict"] not in ("supported", "contradicted", "no difference")
    ]
