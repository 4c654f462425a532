"""The data of the report's script: curves and rows of every run, as JSON that cannot break out of the page.

Curves are thinned to `BUDGET` points per kind of loss over the whole page, but not below `FEWEST` a run, by taking
records evenly from the first to the last. Small results are complete. Records that runs share (steps and tokens) are stored
once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lmablate.report.summary import seed_label
from lmablate.results.arms import is_missing
from lmablate.results.duplicates import counted

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from lmablate.report.sections import Question

Row = dict[str, Any]
Records = tuple[dict[str, Any], Any]  # columns of the whole history, and the indices of a run's records
BUDGET, FEWEST = 200_000, 40
KINDS = {"validation": "val_loss", "training": "train_loss"}
CONFIG = "config.yaml"
# A run in the page's JSON is a list of these, in this order; templates/report.js reads it by the same names.
FIELDS = (
    *("id", "arm", "seed", "stage", "status", "val_loss", "train_loss", "init_val_loss", "val_bpb", "val_accuracy"),
    *("tokens", "tokens_per_param", "wall_seconds", "diverged_at_step", "folder", "numerics", "words", "curves"),
)

RUN_COLUMNS = ("run_id", "init_seed", "data_seed", "provenance.overrides", *FIELDS)


def page_data(questions: Sequence[Question], history: pd.DataFrame, links: Row) -> Row:
    """Return the data of the page: for each question its arms, its runs (FIELDS) and its grids (steps and tokens of records).

    `links` as from config_links."""
    total = sum(len(question.runs) + len(question.tuned) for question in questions)
    most = max(FEWEST, BUDGET // max(1, total))
    columns = {name: history[name].to_numpy(dtype=float) for name in ("step", "tokens", *KINDS.values())}
    records = {run_id: (columns, indices) for run_id, indices in history.groupby("run_id").indices.items()}
    thinned = any(len(indices) > most for _, indices in records.values())
    folders = list(dict.fromkeys(filter(None, links.values())))
    folder_of = {run_id: folders.index(folder) for run_id, folder in links.items() if folder}
    sections = [_question(question, records, most, folder_of) for question in questions]
    return {
        "fields": FIELDS,
        "kinds": list(KINDS),
        "folders": folders,
        "thinned": most if thinned else None,
        "questions": sections,
    }


def config_links(run_ids: Sequence[str], folders: Sequence[str | Path], out: Path) -> dict[str, str | None]:
    """Return for each run the folder of its config.yaml, as a relative link from `out`.

    None if there is no such file, or if the results are not beside, inside or around the page, since a moved page would lose
    them. For a run in several folders, the copy that counts is linked."""
    here, resolved = out.resolve(), [Path(folder).resolve() for folder in folders]
    links: dict[str, str | None] = dict.fromkeys(run_ids)
    counts = counted(resolved)
    for folder in reversed(resolved):
        near = here.parent in (folder, *folder.parents) or folder in here.parents
        if not near:
            continue
        link = quote(Path(os.path.relpath(folder, here)).as_posix())
        link = link if link.startswith(".") else f"./{link}"  # never taken for a scheme
        own = [run_id for run_id in run_ids if counts.get(run_id, folder) == folder]
        links |= {run_id: link for run_id in own if (folder / run_id / CONFIG).is_file()}
    return links


def as_json(data: Any) -> Markup:
    """Return JSON for a <script type="application/json">. `<` is escaped, so that no text in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def content_hash(script: str) -> str:
    """Return a Content-Security-Policy source that allows exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _question(question: Question, records: dict[Any, Records], most: int, folder_of: dict[str, int]) -> Row:
    from lmablate.analysis._style import PALETTE, arm_styles

    looks = arm_styles(question.runs["arm"])
    shown = list(question.arms["arm"])
    arms = [*shown, *sorted({str(arm) for arm in question.tuned.get("arm", ())} - set(shown))]
    order = {arm: i for i, arm in enumerate(sorted(looks))}
    grids: dict[tuple[tuple[int, ...], tuple[float, ...]], int] = {}
    index_of: dict[str, int] = {}
    numerics: dict[str, int] = {}
    rows = []
    for frame in (question.runs, question.tuned):
        for run in frame[[name for name in RUN_COLUMNS if name in frame]].to_dict("records"):
            curves = [_curve(records.get(run["run_id"]), column, most, grids) for column in KINDS.values()]
            number = numerics.setdefault(str(run.get("numerics")), len(numerics))
            rows.append(_run(run | {"numerics": number}, arms.index(str(run["arm"])), index_of, folder_of, curves))
    return {
        "arms": [
            {"name": arm, "hue": PALETTE.index(looks[arm].color), "turn": order[arm] // len(PALETTE) % 3, "mean": _number(mean)}
            for arm, mean in zip(question.arms["arm"], question.arms["mean"], strict=True)
        ]
        + [{"name": arm} for arm in arms[len(shown) :]],
        "evaluated": len(question.runs),  # the first so many runs are those that arms consist of
        "tasks": bool("val_accuracy" in question.arms),
        "grids": [{"steps": steps, "tokens": tokens} for steps, tokens in grids],
        "numerics": list(numerics),  # a column of the table where there are several
        "words": list(index_of),
        "runs": rows,
    }  # fmt: skip


def _run(run: Row, arm: int, index_of: dict[str, int], folder_of: dict[str, int], curves: list[Any]) -> list[Any]:
    overrides: Any = run.get("provenance.overrides")
    typed = [] if is_missing(overrides) else [shlex.quote(str(text)) for text in overrides]
    values = {
        "id": run["run_id"], "arm": arm, "seed": seed_label(run), "stage": _text(run.get("stage")), "status": run["status"],
        "folder": folder_of.get(run["run_id"]), "words": [index_of.setdefault(text, len(index_of)) for text in typed], "curves": curves,
    }  # fmt: skip
    return [values[name] if name in values else _number(run.get(name)) for name in FIELDS]


def _curve(records: Records | None, column: str, most: int, grids: dict[Any, int]) -> list[Any] | None:
    """Return the index of the grid, and the losses on it; None if no finite loss was recorded."""
    import numpy as np

    if records is None:
        return None
    columns, indices = records
    known = indices[np.isfinite(columns[column][indices])]
    if not len(known):
        return None
    if len(known) > most:
        known = known[np.unique(np.linspace(0, len(known) - 1, most).round().astype(int))]
    steps, tokens = (tuple(columns[name][known].astype(int).tolist()) for name in ("step", "tokens"))
    grid = grids.setdefault((steps, tokens), len(grids))
    return [grid, [float(f"{loss:.5g}") for loss in columns[column][known]]]


def _number(value: Any) -> Any:
    """Return a number for JSON, with six digits; None if it is missing or not finite."""
    if is_missing(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) != float("inf") else None
    return value


def _text(value: Any) -> str | None:
    return None if is_missing(value) else str(value)
