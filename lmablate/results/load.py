"""Load finished runs and their training records as pandas frames (see runs/run_directory.py)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import read_bounded, read_jsonl
from lmablate.results import duplicates
from lmablate.results.folders import ResultsDir, SkippedFile, numerics_text, result_folders
from lmablate.runs.config_file import MOST_BYTES
from lmablate.runs.run_directory import RUN_ID, RunDirectory, read_result_file
from lmablate.schema.identity import is_stale
from lmablate.schema.result import LEADING, NUMBERS, STATUSES, WHOLE, WHOLE_OR_NONE, RunResult

if TYPE_CHECKING:
    import pandas as pd

_BLOCKS = ("numerics", "data", "diagnostics", "val_accuracy_by_length", "provenance")
HISTORY_COLUMNS = (
    *("run_id", "step", "tokens", "seconds", "train_loss", "lr", "grad_norm"),
    *("tokens_per_second", "val_loss", "val_bpb"),
)


class Names(tuple[str, ...]):
    """Names in the attributes of a frame, of which pandas makes a deep copy at every selection: they cannot change, so it is itself."""

    def __deepcopy__(self, memo: object) -> Names:
        return self


def load_runs(results_dir: ResultsDir, *, status: str | Collection[str] | None = None) -> pd.DataFrame:
    """Return one row for each finished run, by run id.

    Columns: the scalars of result.json as they are (`val_loss` in nats per token); each axis with its option (`norm`,
    `activation`, ...); the configuration with dotted names (`optim.lr`, `model.d_model`); `numerics` as text (``cpu
    fp32 eager``) and, like `data` and `provenance`, item by item (`numerics.device`, `data.fingerprint`). If two claim
    a name, the axis wins, then result.json's own scalar; a configuration value that loses is ``config.<name>`` if it
    differs. `code` names the modules of a run that were not as shipped, with their fingerprints
    (``mypackage.norms=0123456789ab``), and `stale` is true if today's code would compute other numbers.

    `results_dir` may be several folders; a run that is in several counts once (results/duplicates.py), and a
    SkippedFile warning names the copy that counts. `status` keeps one status or several. Damaged files are left out
    with a SkippedFile warning. Raises ConfigError if a folder is missing.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    axes: dict[str, None] = {}
    folders = result_folders(results_dir)
    twice = duplicates.choices(folders)
    for folder in folders:
        for path in _in_runs(folder, "result.json"):
            if path.parent.name in twice and twice[path.parent.name].taken.folder != folder:
                continue
            row, problem = read_result_file(path)
            if row is None or row.run_id != path.parent.name:  # the id is used in paths
                problem = problem or "its run_id is not the name of its folder"
                warnings.warn(f"{path}: left out ({problem})", SkippedFile, stacklevel=2)
                continue
            axes |= dict.fromkeys(row.choices)
            rows[row.run_id] = flat_row(row)
    for sentence in duplicates.sentences(twice):
        warnings.warn(sentence, SkippedFile, stacklevel=2)
    wanted = STATUSES if status is None else {status} if isinstance(status, str) else set(status)
    if unknown := set(wanted) - set(STATUSES):
        raise ConfigError(f"status={', '.join(sorted(unknown))}: unknown; there are {', '.join(STATUSES)}")
    frame = pd.DataFrame([row for row in rows.values() if row["status"] in wanted])
    frame = frame.reindex(columns=list(dict.fromkeys([*LEADING, *axes, *frame.columns])))
    for columns, kind in ((WHOLE, "int64"), (WHOLE_OR_NONE, "Int64"), (NUMBERS, "float64")):
        for column in columns:
            frame[column] = frame[column].astype(kind)
    for seed in ("init_seed", "data_seed"):
        frame[seed] = frame[seed].fillna(frame["seed"])
    if "ffn" in axes:  # older rows lack it, when there was one option
        frame["ffn"] = frame["ffn"].fillna("dense")
    frame["tokens_per_param"] = frame["tokens_per_param"].fillna(_tokens_per_param(frame))  # older rows lack it
    frame.attrs["axes"] = Names(axes)
    frame.attrs["folders"] = Names(map(str, folders))
    return frame


def _tokens_per_param(frame: pd.DataFrame) -> pd.Series:
    """Return the tokens that each run saw for each non-embedding parameter that a token meets."""
    import pandas as pd

    active = frame["n_params_non_embedding"].astype("float64")
    if "n_params_active" in frame:
        active -= (frame["n_params"] - pd.to_numeric(frame["n_params_active"])).fillna(0)
    return frame["tokens"] / active.where(active > 0)


def load_history(
    results_dir: ResultsDir, run_ids: Iterable[str] | None = None, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the training records of all runs, finished or not, one row a record, in order of run id and step.

    Columns: run_id, step (optimizer steps done), tokens (seen in training), seconds (of training), train_loss and
    val_loss (nats per token), lr, grad_norm, tokens_per_second, val_bpb (bits per byte), and other recorded keys; NaN
    if a record lacks one. `run_ids` keeps some runs, `columns` some columns (run_id always stays). A last line torn by
    a kill is dropped; a file damaged elsewhere is left out with a SkippedFile warning. Of a run in several folders, the
    records are those of the copy that counts (load_runs).
    """
    import pandas as pd

    wanted = None if run_ids is None else set(run_ids)
    records: dict[str, list[dict[str, Any]]] = {}
    folders = result_folders(results_dir)
    counts = duplicates.counted(folders)
    for folder in folders:
        for path in _in_runs(folder, "history.jsonl", wanted):
            run_id = path.parent.name
            if run_id in records or counts.get(run_id, folder) != folder:
                continue
            try:
                rows = read_jsonl(path)
                if not all(isinstance(row.get("step"), int) for row in rows):
                    raise ValueError("a record without a step")
                if not all(_is_number(row.get(key)) for row in rows for key in HISTORY_COLUMNS[1:]):
                    raise ValueError("a record with something that is no number")
            except (OSError, ValueError) as error:
                why = access.reason(error) if isinstance(error, OSError) else error
                warnings.warn(f"{path}: left out ({why})", SkippedFile, stacklevel=2)
                continue
            records[run_id] = [{"run_id": run_id, **row} for row in rows]
    frame = pd.DataFrame([row for rows in records.values() for row in rows])
    frame = frame.reindex(columns=list(dict.fromkeys([*HISTORY_COLUMNS, *frame.columns])))
    for column in HISTORY_COLUMNS[1:]:
        frame[column] = frame[column].astype("int64" if column == "step" else "float64")
    if columns is None:
        return frame
    if unknown := [column for column in columns if column not in frame.columns]:
        raise ConfigError(f"history has no column {', '.join(unknown)}; there are {', '.join(frame.columns)}")
    return frame[list(dict.fromkeys(["run_id", *columns]))]


def _in_runs(folder: Path, name: str, wanted: Collection[str] | None = None) -> Iterator[Path]:
    """Yield the files of this name in the run folders of a results directory, with a warning for a closed folder."""
    for run, why in access.folders(folder):
        if wanted is not None and run.name not in wanted:
            continue
        if why and RUN_ID.fullmatch(run.name):
            warnings.warn(f"{run}: left out ({why})", SkippedFile, stacklevel=3)
        elif not why and access.there(run / name):
            yield run / name


def load_unfinished(results_dir: ResultsDir) -> list[dict[str, Any]]:
    """Return runs without a readable result.json in any of the folders. Keys: `run_id`, `state` (of the heartbeat,
    ``not started`` without one, ``damaged`` if result.json cannot be read or the folder may not be entered), `error`,
    `step`, `steps`, `overrides`, and the `log` path."""
    import yaml

    rows: dict[str, dict[str, Any]] = {}
    folders = result_folders(results_dir)
    for folder in folders:
        for path, why in access.folders(folder):
            directory = RunDirectory(folder, path.name)
            marks = (directory.config_path, directory.history_path, directory.status_path, directory.result_path)
            begun = RUN_ID.fullmatch(path.name) if why else any(access.there(mark) for mark in marks)
            if path.name in rows or not begun:
                continue
            if any(RunDirectory(other, path.name).is_done for other in folders):
                continue
            status = directory.read_status()
            config = _mapping(directory.config_path, yaml.safe_load)
            damaged = why or access.there(directory.result_path)
            state = "damaged" if damaged else _if(status.get("state"), str) or "not started"
            fields: dict[str, Any] = {key: _if(status.get(key), int) for key in ("step", "steps")}
            fields["error"] = why or _if(status.get("error"), str)
            overrides = tuple(str(override) for override in _if(config.get("overrides"), list) or ())
            rows[path.name] = {
                "run_id": path.name, "state": state, **fields, "overrides": overrides, "log": directory.log_path
            }  # fmt: skip
    return list(rows.values())


def _is_number(value: Any) -> bool:
    """Return whether a value fits a column of numbers, as null does."""
    return value is None or (isinstance(value, int | float) and (isinstance(value, float) or abs(value) < 2**63))


def _if(value: Any, kind: type) -> Any:
    """Return `value` if it is of that kind, else None: a file may hold anything."""
    return value if isinstance(value, kind) else None


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return the mapping in a file, or an empty one if it cannot be read, since these runs went wrong."""
    try:
        value = parse(read_bounded(path, MOST_BYTES).decode())
    except Exception:
        return {}
    return value if isinstance(value, dict) else {}


def flat_row(row: RunResult) -> dict[str, Any]:
    """Return one result as a flat row; load_runs tells which value wins a name."""
    flat = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
    flat["numerics"] = numerics_text(row.numerics)
    flat["code"] = " ".join(f"{module}={digest}" for module, digest in (row.code or {}).items()) or None
    flat["stale"] = is_stale(row.science_version, row.code)
    flat |= row.choices
    for block in _BLOCKS:
        for key, value in _leaves(row.get(block) or {}, f"{block}."):
            flat.setdefault(key, value)
    for key, value in _leaves(row.config):
        if "." in key and key not in flat:
            flat[key] = value
        elif key not in flat or (value is not None and flat[key] != value):
            flat[f"config.{key}"] = value
    return flat


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every leaf. A list becomes a tuple, or JSON text if it is nested."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            nested = any(isinstance(item, dict | list) for item in value)
            yield f"{prefix}{key}", json.dumps(value) if nested else tuple(value)
        else:
            yield f"{prefix}{key}", value
