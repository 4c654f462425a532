"""Evaluations of finished runs, kept beside their results: ``RESULTS_DIR/<run_id>/evaluations/<text>-<hash>.json``.

A file holds one text under one set of lengths and changes (lmablate/evaluate); the same question replaces it. Training
leaves one where ``runtime.evaluate_lengths`` asks for it, and ``python -m lmablate.evaluate`` at any time later.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import atomic_write, read_json, read_jsonl

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.schema.run_config import RunConfig

FOLDER = "evaluations"
ARCHIVE = "evaluations.jsonl"  # of lmablate.archive
VALIDATION = "validation"  # the text that a run's own val_loss was measured on
SCHEMA_VERSION = 1
# What tells one evaluation from another, and what it says.
KEYS = ("run_id", "text", "text_fingerprint", "changes", "train_length", "length", "times", "stride")
MEASURES = ("tokens", "nats_per_token", "bits_per_byte", "accuracy", "ece")
COLUMNS = (*KEYS, "sliding", *MEASURES, "numerics", "file")
POSITION_COLUMNS = (*KEYS, "sliding", "start", "end", "tokens", "nats_per_token")


def file_name(text: str, fingerprint: str, protocols: Sequence[tuple[int, int]], changes: Sequence[str]) -> str:
    """The name of an evaluation: its text in words, and a hash of everything that was asked."""
    asked = json.dumps([fingerprint, sorted(map(list, protocols)), sorted(changes)])
    word = re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:40] or "text"
    return f"{word}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"


def write_evaluation(run_dir: Path, content: dict[str, Any]) -> Path:
    """Write one evaluation, whole or not at all; non-finite numbers become null."""
    path = _path(run_dir, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
    return path


def _path(run_dir: Path, content: dict[str, Any]) -> Path:
    text = content["text"]
    asked = [(entry["length"], entry["stride"]) for entry in content["results"]]
    return run_dir / FOLDER / file_name(text["name"], text["fingerprint"], asked, content["changes"])


def finite(value: Any) -> Any:
    """`value` with every non-finite number as null: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """One file, or None where it cannot be read."""
    try:
        content = read_json(path)
        whole = content["schema_version"] == SCHEMA_VERSION and all(
            {"length", "stride", "positions", *MEASURES} <= set(entry) for entry in content["results"]
        )
        return content if whole and {"run_id", "text", "changes", "train_length"} <= set(content) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lacks(cfg: RunConfig, run_dir: Path, row: dict[str, Any] | None) -> bool:
    """Does the finished run of `row` lack the evaluation that its configuration asks for? A diverged one has none."""
    if not asks(cfg) or row is None or row["status"] != "completed":
        return False
    from lmablate.schema.evaluation_windows import asked_protocols

    name = file_name(VALIDATION, str(row.get("data", {}).get("fingerprint")), asked_protocols(cfg), [])
    return read_evaluation(run_dir / FOLDER / name) is None


def evaluations_of(results_dir: Path, run_ids: Collection[str]) -> str:
    """The evaluations of some runs on their validation text, one a line; bins of calibration stay out."""
    found = [one for one in _contents(results_dir) if one["run_id"] in run_ids and one["text"]["name"] == VALIDATION]
    for content in found:
        del content["file"]
        content["results"] = [{**entry, "calibration": []} for entry in content["results"]]
    return "".join(sorted(json.dumps(_rounded(finite(content)), allow_nan=False) + "\n" for content in found))


def restore_evaluations(archive: Path, run_ids: Collection[str], results_dir: Path) -> None:
    """Put them back beside the results of their runs, where they are not there already. Raises ConfigError."""
    try:
        contents = read_jsonl(archive / ARCHIVE) if (archive / ARCHIVE).exists() else []
        for content in contents:
            if content["run_id"] in run_ids and not _path(results_dir / content["run_id"], content).exists():
                write_evaluation(results_dir / content["run_id"], content)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{archive / ARCHIVE}: damaged ({type(error).__name__}: {error}): take it out, or mend it"
        ) from None


def _rounded(value: Any) -> Any:
    """Seven digits, which say more than seeds leave certain."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def asks(cfg: RunConfig) -> bool:
    """Is an evaluation to follow the training of `cfg`? Runs that only choose a learning rate have none."""
    return cfg.runtime.evaluate_lengths is not None and cfg.stage != "tune"


def load_evaluations(results_dir: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row for each run, text, set of changes, length and stride.

    Columns: `run_id`; `text` (``validation``, or what files were given) and its fingerprint; `changes` in words, empty for
    the run as it was trained; `train_length` and `length` in tokens, `times` their ratio; `stride` in tokens, and
    `sliding`, true where windows overlap; `tokens` scored, `nats_per_token`, `bits_per_byte`, `accuracy` and `ece` (expected
    calibration error, 0 to 1) of the most likely token; `numerics`; and the `file`. Damaged files are left out with a
    SkippedFile warning. Raises ConfigError if a folder is missing.
    """
    return frames(_contents(results_dir))[0]


def load_positions(results_dir: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """The loss by position of every evaluation: a row for each bin of positions ``[start, end)`` in the window, with the
    `tokens` in it and their mean `nats_per_token`; the other columns as in load_evaluations."""
    return frames(_contents(results_dir))[1]


def frames(contents: Iterable[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations as two tables, by length and by position; of one question asked twice the later answer stands."""
    import pandas as pd

    pairs = [(_common(content, entry), entry) for content in contents for entry in content["results"]]
    rows = [{**{key: entry[key] for key in MEASURES}, **common} for common, entry in pairs]
    places = [{**common, **place} for common, entry in pairs for place in entry["positions"]]
    lengths = pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(list(KEYS), keep="last", ignore_index=True)
    positions = pd.DataFrame(places, columns=list(POSITION_COLUMNS))
    for frame, columns in ((lengths, MEASURES[1:]), (positions, ["nats_per_token"])):
        for column in columns:
            frame[column] = frame[column].astype("float64")
    return lengths, positions.drop_duplicates([*KEYS, "start"], keep="last", ignore_index=True)


def _common(content: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": content["run_id"],
        "text": content["text"]["name"],
        "text_fingerprint": content["text"]["fingerprint"],
        "changes": " ".join(content["changes"]),
        "train_length": content["train_length"],
        "length": entry["length"],
        "times": entry["length"] / content["train_length"],
        "stride": entry["stride"],
        "sliding": entry["stride"] < entry["length"],
        "numerics": " ".join(content.get("numerics", {}).values()),
        "file": content.get("file"),
    }


def _contents(results_dir: str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """Every readable evaluation of finished runs, the oldest first; of a run in several folders, of the copy that counts."""
    from lmablate.results.duplicates import counted
    from lmablate.results.load import SkippedFile, result_folders

    found, folders = [], result_folders(results_dir)
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
                found.append({**content, "file": str(path)})
    return found


def _files(folder: Path) -> list[Path]:
    """Those of one run. A run folder that may not be entered has no row either, which load_runs says."""
    from lmablate.results.load import SkippedFile

    try:
        if access.there(folder) and (why := access.why_closed(folder)):
            raise PermissionError(errno.EACCES, why, str(folder))
        return access.listed(folder, "*.json")
    except OSError as error:
        warnings.warn(f"{folder}: left out ({access.reason(error)})", SkippedFile, stacklevel=4)
        return []
