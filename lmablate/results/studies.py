"""Read and write the file of a study, ``RESULTS_DIR/studies/<sweep>.json``: its settings, learning rates and runs.

A run can serve two arms, two stages or two studies (it is trained once), and its own row names the first one that
requested it; this file lists every use.
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
FOLDER = "studies"  # not taken for a run's folder, since it holds no result.json


def study_path(results_dir: str | Path, sweep: str) -> Path:
    # A sweep in a folder has a slash in its name.
    return Path(results_dir) / FOLDER / f"{file_stem(sweep)}.json"


def write_study(results_dir: str | Path, sweep: str, content: dict[str, Any]) -> Path:
    """Replace the file of a study atomically. Returns its path."""
    path = study_path(results_dir, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def save_study(results_dir: str | Path, sweep: str, content: dict[str, Any]) -> None:
    """Write the file of a study at work. A failed write costs the overview, and not the runs."""
    try:
        write_study(results_dir, sweep, content)
    except OSError as error:
        log.warning(
            "%s: not written, so that reports know its runs and not its arms (%s)",
            study_path(results_dir, sweep),
            access.reason(error),
        )


def load_studies(results_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Return the studies of a results directory by sweep name. Damaged files are skipped with a warning."""
    found = {}
    for path in _files(Path(results_dir) / FOLDER):
        try:
            content = read_json(path)
            if not (isinstance(content, dict) and has_runs(content)):
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
    """Return the studies of several results directories. Of copies of one study, the one that lists more runs counts.
    Different studies of one stored sweep (at another scale) have their folders in their names (AT)."""
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


def has_runs(content: dict[str, Any]) -> bool:
    """Return whether a file names its study and lists runs."""
    runs = content.get("runs")
    names = ("run_id", "arm", "stage")
    return (
        isinstance(content.get("sweep"), str)
        and isinstance(runs, list)
        and all(isinstance(run, dict) and all(isinstance(run.get(name), str | None) for name in names) for run in runs)
    )


def study_runs(runs: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the finished runs of one study from `runs` (load_runs), once for each use, with its `arm`, `stage` and
    `sweep`."""
    import pandas as pd

    uses = pd.DataFrame(study["runs"], columns=["run_id", "arm", "stage"]).drop_duplicates()
    uses["sweep"] = study["sweep"]
    rest = runs.drop(columns=[column for column in ("arm", "stage", "sweep") if column in runs])
    out = uses.merge(rest, on="run_id", how="inner")
    out.attrs.update(runs.attrs)
    return out
