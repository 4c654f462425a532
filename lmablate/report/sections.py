"""The questions of a report: the finished runs of each stored sweep, their results, and what is missing.

Arms are named, compared and warned about within a question. Differences in parameters, seeds and tokens between two studies
are not an error of either.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmablate.claims.report_verdicts import EVALUATED
from lmablate.report.claim_tables import DECIDED
from lmablate.report.notices import STAGES, missing, study_notices
from lmablate.report.reproduce import commands, with_more_seeds
from lmablate.report.summary import arms_table, notices, question
from lmablate.report.tuned_studies import arms_by_size, compared, sensitivities, shown
from lmablate.results.arms import keys
from lmablate.results.common_targets import on_common_targets
from lmablate.results.duplicates import counted
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.sweeps import sweep_question

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
TUNED = ("tune", "search")


class Missing(NamedTuple):
    """Something that is missing, and the command that would add it, if there is one, with its purpose (`for_`)."""

    words: str
    command: str = ""
    for_: str = ""


@dataclass(frozen=True, eq=False)
class Question:
    """The runs of one question, with its results.

    `name`: the stored sweep, None for runs of no sweep. `runs`: those that are compared, with their arms (as from
    tuned_studies.shown). `tuned`: those that only chose a learning rate. `comparisons` and `rates` as from tuned_studies.
    `warnings`: sentences. `commands`: the commands that train its runs again. `sizes`: the arms of each size of a ladder.
    """

    name: str | None
    runs: pd.DataFrame
    tuned: pd.DataFrame
    comparisons: list[Row]
    rates: list[Row]
    missing: list[Missing]
    warnings: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    sizes: list[list[str]] = field(default_factory=list)

    @cached_property
    def arms(self) -> pd.DataFrame:
        """Return the table of arms."""
        return arms_table(self.runs)

    @cached_property
    def notices(self) -> list[str]:
        """Return the caveats of these runs, of this question alone."""
        return [*notices(self.runs, self.arms, self.sizes), *self.warnings]

    @cached_property
    def varied(self) -> str:
        """Return the columns in which the arms differ, as text."""
        return question(self.runs)

    @cached_property
    def title(self) -> str:
        """Return the question of the stored sweep, or the columns in which the arms differ."""
        return (self.name and sweep_question(self.name)) or self.varied


def questions(
    every: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Row],
    history: pd.DataFrame,
    claims: Sequence[Row] = (),
    folders: Sequence[Path] = (Path("results"),),
) -> list[Question]:
    """Return one question for each sweep of `every` (as from report_verdicts.evidence), by name, and one for runs of none.

    `folders`: the results directories."""
    recorded, counts = set(history["run_id"]), counted(folders)
    names = sorted({str(name) for name in keys(every, "sweep") if name is not None})
    out = []
    for name in [*names, *([None] if every["sweep"].isna().any() else [])]:
        scope = "asked" if name else "not asked"
        own = [claim for claim in claims if (claim["study"], claim["scope"]) == (name, scope)]
        rows = every[[one == name for one in keys(every, "sweep")]].reset_index(drop=True)
        rows.attrs.update(every.attrs)
        parts = _folders(rows, folders, counts)
        out.append(_question(name, rows, every, studies, unfinished if name else (), recorded, own, parts))
    return out


def _folders(
    rows: pd.DataFrame, folders: Sequence[Path], counts: Mapping[str, Path]
) -> list[tuple[Path, pd.DataFrame]]:
    """Return the rows by the folder that they are in."""
    if len(folders) == 1:
        return [(folders[0], rows)]
    out = []
    for folder in folders:
        here = [
            counts.get(run_id, folder) == folder and RunDirectory(folder, run_id).result_path.exists()
            for run_id in rows["run_id"]
        ]
        out += [(folder, rows[here])] if any(here) else []
    return out


def without_runs(studies: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> list[str]:
    """Return notices on studies that have no finished run, and so no section."""
    known = {question.name for question in questions}
    return [
        f"{study['sweep']}: none of the {len({use['run_id'] for use in study['runs']})} runs of this study has a result. The same "
        "training command makes them."
        for study in studies
        if study["sweep"] not in known and study["runs"]
    ]


def _question(
    name: str | None,
    rows: pd.DataFrame,
    every: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Row],
    recorded: set[str],
    claims: Sequence[Row],
    parts: Sequence[tuple[Path, pd.DataFrame]],
) -> Question:
    own = [study for study in studies if study["sweep"] == name]
    rows.attrs["searched"] = _searched(own, studies)
    runs = on_common_targets(shown(rows))
    tuned = rows[rows["stage"].isin(TUNED)] if "stage" in rows and len(rows) > len(runs) else rows[:0]
    rates = sensitivities(rows, own)
    sized = _sized(own)
    again = [line for folder, here in parts for line in commands(here, folder, sized)]
    lost = [
        Missing(notice, again[0] if len(again) == 1 else "")
        for notice in missing(every, own, unfinished, stages=tuple(STAGES))
    ]
    return Question(
        name, runs, tuned, compared(runs, own), rates,
        missing=[*lost, *_missing(rows, own, recorded), *_undecided(runs, claims, parts, sized)],
        warnings=study_notices(every, own, unfinished, rates),
        commands=again,
        sizes=[group for study in own if study.get("ladder") for group in arms_by_size(list(dict.fromkeys(runs["arm"])), study)],
    )  # fmt: skip


def _sized(own: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the keys that the rungs of ladder studies set, which their commands do not take."""
    rungs = [rung for study in own if study.get("ladder") for rung in study["ladder"]["rungs"]]
    return {override.lstrip("+").partition("=")[0] for rung in rungs for override in rung.get("overrides", ())}


def _searched(own: Sequence[Mapping[str, Any]], studies: Sequence[Mapping[str, Any]]) -> int:
    """Return how many evaluation runs of these studies evidence() left out because a search was guided by them."""
    guided = {use["run_id"] for study in studies if study.get("search") for use in study["runs"]}
    return len({use["run_id"] for study in own for use in study["runs"] if use["stage"] in EVALUATED} & guided)


def _missing(rows: pd.DataFrame, own: Sequence[Mapping[str, Any]], recorded: set[str]) -> list[Missing]:
    """Return what is missing: the end of an unfinished study, and training records."""
    lines = [
        f"The study is not done: it is at the stage {study['stage']}."
        for study in own
        if study.get("stage") not in (None, "done")
    ]
    if not own and "stage" in rows and rows["stage"].notna().any():
        lines.append(
            f"studies/{rows['sweep'].iloc[0]}.json is not there, so it is unknown which runs this study asked for and how it tuned."
        )
    silent = sorted(set(rows["run_id"]) - recorded)
    if silent and len(silent) == rows["run_id"].nunique():
        lines.append("No run has training records (history.jsonl; an archive keeps none), so there are no loss curves.")
    elif silent:
        named = ", ".join(silent[:6]) + (f" and {len(silent) - 6} more" if len(silent) > 6 else "")
        lines.append(f"No training records (history.jsonl), so no curve, of {named}.")
    return [Missing(line) for line in lines]


def _undecided(
    runs: pd.DataFrame, claims: Sequence[Row], parts: Sequence[tuple[Path, pd.DataFrame]], sized: Collection[str]
) -> list[Missing]:
    """Return the claims without a verdict, with the command that adds the seeds they need."""
    out = []
    for claim in claims:
        if claim["verdict"] in DECIDED:
            continue
        more = claim["more_seeds"] if claim["verdict"] == "not decided" and len(parts) == 1 else None
        command = with_more_seeds(runs, more, parts[0][0], sized) if more else ""
        out.append(
            Missing(f"No verdict on {claim['id']} ({claim['statement']}): {claim['reason']}.", command, claim["id"])
        )
    return out
