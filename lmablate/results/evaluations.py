"""Load evaluations of finished runs as pandas frames, and archive them (see runs/evaluation_files.py)."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import finite
from lmablate.results.duplicates import counted
from lmablate.results.folders import SkippedFile, result_folders
from lmablate.runs.evaluation_files import FOLDER, path_of, read_evaluation, write_evaluation
from lmablate.schema.evaluation import MEASURES, EvaluationFile, WindowScores
from lmablate.schema.evaluation_windows import VALIDATION

if TYPE_CHECKING:
    import pandas as pd

ARCHIVE = "evaluations.jsonl"  # file name in an archive of lmablate.archive
# Columns that identify a row of an evaluation.
KEYS = ("run_id", "text", "text_fingerprint", "changes", "train_length", "length", "times", "stride")
COLUMNS = (*KEYS, "sliding", *MEASURES, "numerics", "file")
POSITION_COLUMNS = (*KEYS, "sliding", "start", "end", "tokens", "nats_per_token")


def archived_evaluations(results_dir: Path, run_ids: Collection[str]) -> str:
    """Return the evaluations of some runs on their validation text as JSON lines, without bins of calibration."""
    found = [one for _, one in _contents(results_dir) if one.run_id in run_ids and one.text.name == VALIDATION]
    whole = (one.model_dump() for one in found)
    kept = ({**one, "results": [{**entry, "calibration": []} for entry in one["results"]]} for one in whole)
    return "".join(sorted(json.dumps(_rounded(finite(one)), allow_nan=False) + "\n" for one in kept))


def restore_evaluations(
    contents: Iterable[dict[str, Any]], run_ids: Collection[str], results_dir: Path, archive: Path
) -> None:
    """Write evaluations from `archive` into the folders of their runs, unless they exist. Raises ConfigError."""
    try:
        for content in map(EvaluationFile.model_validate, contents):
            if content.run_id in run_ids and not path_of(results_dir / content.run_id, content).exists():
                write_evaluation(results_dir / content.run_id, content)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{archive}: evaluations are damaged ({type(error).__name__}: {error}): take them out, or mend them"
        ) from None


def _rounded(value: Any) -> Any:
    """Return a value with numbers of seven digits, which exceeds the certainty that seeds leave."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def load_evaluations(results_dir: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return one row for each run, text, set of changes, length and stride.

    Columns: `run_id`; `text` (``validation``, or the given files) and its fingerprint; `changes` as overrides, empty
    for the run as trained; `train_length` and `length` in tokens, `times` their ratio; `stride` in tokens, and
    `sliding`, true if windows overlap; `tokens` scored, `nats_per_token`, `bits_per_byte`, `accuracy` and `ece`
    (expected calibration error, 0 to 1) of the most likely token; `numerics`; and the `file`. Damaged files are left
    out with a SkippedFile warning. Raises ConfigError if a folder is missing.
    """
    return frames(_contents(results_dir))[0]


def load_positions(results_dir: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return the loss by position of every evaluation, a row for each bin of positions ``[start, end)`` in the window.
    Columns: the `tokens` in the bin, their mean `nats_per_token`, and those of load_evaluations."""
    return frames(_contents(results_dir))[1]


def frames(contents: Iterable[tuple[Path | None, EvaluationFile]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return evaluations as two tables, by length and by position. Of repeated evaluations the later one counts."""
    import pandas as pd

    pairs = [(_common(path, content, entry), entry) for path, content in contents for entry in content.results]
    rows = [{**{key: getattr(entry, key) for key in MEASURES}, **common} for common, entry in pairs]
    bins = [{**common, **one.model_dump()} for common, entry in pairs for one in entry.positions]
    lengths = pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(list(KEYS), keep="last", ignore_index=True)
    positions = pd.DataFrame(bins, columns=list(POSITION_COLUMNS))
    for frame, columns in ((lengths, MEASURES[1:]), (positions, ["nats_per_token"])):
        for column in columns:
            frame[column] = frame[column].astype("float64")
    return lengths, positions.drop_duplicates([*KEYS, "start"], keep="last", ignore_index=True)


def _common(path: Path | None, content: EvaluationFile, entry: WindowScores) -> dict[str, Any]:
    return {
        "run_id": content.run_id,
        "text": content.text.name,
        "text_fingerprint": content.text.fingerprint,
        "changes": " ".join(content.changes),
        "train_length": content.train_length,
        "length": entry.length,
        "times": entry.length / content.train_length,
        "stride": entry.stride,
        "sliding": entry.stride < entry.length,
        "numerics": " ".join(content.numerics.values()),
        "file": None if path is None else str(path),
    }


def _contents(results_dir: str | Path | Iterable[str | Path]) -> list[tuple[Path, EvaluationFile]]:
    """Return every readable evaluation of finished runs, oldest first; of a run in several folders, of the copy that counts."""
    found: list[tuple[Path, EvaluationFile]] = []
    folders = result_folders(results_dir)
    counts = counted(folders)
    for folder in folders:
        paths = [path for run, why in access.folders(folder) if not why for path in _files(run / FOLDER)]
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            if counts.get(path.parents[1].name, folder) != folder:
                continue
            content = read_evaluation(path)
            if content is None:
                warnings.warn(f"{path}: left out (not an evaluation that can be read)", SkippedFile, stacklevel=3)
            else:
                found.append((path, content))
    return found


def _files(folder: Path) -> list[Path]:
    """Return the evaluation files in a folder, with a warning if it may not be entered."""
    try:
        if access.there(folder) and (why := access.why_closed(folder)):
            raise PermissionError(errno.EACCES, why, str(folder))
        return access.listed(folder, "*.json")
    except OSError as error:
        warnings.warn(f"{folder}: left out ({access.reason(error)})", SkippedFile, stacklevel=4)
        return []
