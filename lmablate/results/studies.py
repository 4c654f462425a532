"""``RESULTS_DIR/studies/<sweep>.json``: what a study asked, which learning rates it chose and why, and its runs.

A run can serve two arms' views, two stages or two studies (it is trained once), and its own row names the first that asked
for it; here every use is listed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core import access
from lmablate.core.files import atomic_write, file_stem, read_json
from lmablate.schema.sweeps import AT

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
FOLDER = "studies"  # no run directory: it holds no result.json


def study_path(results_dir: str | Path, sweep: str) -> Path:
    # A sweep of a folder of its own has a slash in its name.
    return Path(results_dir) / FOLDER / f"{file_stem(sweep)}.json"


def write_study(results_dir: str | Path, sweep: str, content: dict[str, Any]) -> Path:
    """Replace the file of a study, whole or not at all."""
    path = study_path(results_dir, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def save_study(results_dir: str | Path, sweep: str, content: dict[str, Any]) -> None:
    """The same at work: a file that cannot be written costs the overview, and not the runs."""
    try:
        write_study(results_dir, sweep, content)
    except OSError as error:
        log.warning(
            "%s: not written, so that reports know its runs and not its arms (%s)",
            study_path(results_dir, sweep),
            access.reason(error),
        )


def load_studies(results_dir: str | Path) -> dict[str, dict[str, Any]]:
    """The studies of a results directory by the name of their sweep; damaged files are left out, and said."""
    found = {}
    for path in _files(Path(results_dir) / FOLDER):
        try:
            content = read_json(path)
            if not (isinstance(content, dict) and _has_runs(content)):
                raise ValueError("it does not say of which study it is, and which runs it has")
            found[content["sweep"]] = content
        except (OSError, ValueError) as error:
            _left_out(path, error)
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return access.listed(folder, "*.json")
    except OSError as error:
        _left_out(folder, error)
        return []


def _left_out(path: Path, error: OSError | ValueError) -> None:
    why = access.reason(error) if isinstance(error, OSError) else error
    log.warning("%s: left out (%s)", path, why)


def studies_in(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The studies of several results directories. Where two hold the same study, the one that lists more runs counts; where
    two hold different studies of one stored sweep (another scale), each has its folder in its name (AT)."""
    found: list[tuple[str | Path, dict[str, Any]]] = []
    for folder in folders:
        for study in load_studies(folder).values():
            own = {use["run_id"] for use in study["runs"]}
            alike = [other for _, other in found if other["sweep"] == study["sweep"]]
            if any(own <= {use["run_id"] for use in other["runs"]} for other in alike):
                continue
            found = [
                one for one in found
                if one[1]["sweep"] != study["sweep"] or not {use["run_id"] for use in one[1]["runs"]} <= own
            ]  # fmt: skip
            found.append((folder, study))
    names = [study["sweep"] for _, study in found]
    return [
        {**study, "sweep": f"{study['sweep']}{AT}{folder}"} if names.count(study["sweep"]) > 1 else study
        for folder, study in found
    ]


def _has_runs(content: dict[str, Any]) -> bool:
    """Does a file say which study it is of, and list runs?"""
    runs = content.get("runs")
    words = ("run_id", "arm", "stage")
    return (
        isinstance(content.get("sweep"), str)
        and isinstance(runs, list)
        and all(isinstance(run, dict) and all(isinstance(run.get(word), str | None) for word in words) for run in runs)
    )


def study_runs(runs: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """The finished runs of one study out of `runs` (load_runs), once for each use, with `arm`, `stage` and `sweep` as this
    study sees them."""
    import pandas as pd

    uses = pd.DataFrame(study["runs"], columns=["run_id", "arm", "stage"]).drop_duplicates()
    uses["sweep"] = study["sweep"]
    rest = runs.drop(columns=[column for column in ("arm", "stage", "sweep") if column in runs])
    out = uses.merge(rest, on="run_id", how="inner")
    out.attrs.update(runs.attrs)
    return out
