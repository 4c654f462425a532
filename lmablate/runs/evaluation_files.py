"""Write and read the evaluations of a run: ``RESULTS_DIR/<run_id>/evaluations/<text>-<hash>.json``.

A file holds one text under one set of lengths and changes (lmablate/evaluate); repeating the evaluation replaces it.
Training writes one if ``runtime.evaluate_lengths`` is set; ``lmablate evaluate`` writes one at any later
time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.core.files import atomic_write, finite, read_json
from lmablate.schema.evaluation import EvaluationFile
from lmablate.schema.evaluation_windows import VALIDATION, requested_protocols

if TYPE_CHECKING:
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

FOLDER = "evaluations"


def file_name(text: str, fingerprint: str, protocols: Sequence[tuple[int, int]], changes: Sequence[str]) -> str:
    """Return the file name of an evaluation: the name of its text, and a hash of text, protocols and changes."""
    key = json.dumps([fingerprint, sorted(map(list, protocols)), sorted(changes)])
    word = re.sub(r"[^A-Za-z0-9_.]+", "_", text)[:40] or "text"
    return f"{word}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"


def write_evaluation(run_dir: Path, content: EvaluationFile) -> Path:
    """Write one evaluation atomically; non-finite numbers become null. Returns its path."""
    path = path_of(run_dir, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(finite(content.model_dump()), indent=1, allow_nan=False) + "\n")
    return path


def path_of(run_dir: Path, content: EvaluationFile) -> Path:
    """Return the path of an evaluation in the folder of its run."""
    windows = [(entry.length, entry.stride) for entry in content.results]
    return run_dir / FOLDER / file_name(content.text.name, content.text.fingerprint, windows, content.changes)


def read_evaluation(path: Path) -> EvaluationFile | None:
    """Read one file. Returns None if it cannot be read."""
    try:
        return EvaluationFile.model_validate(read_json(path))
    except (OSError, ValueError):
        return None


def has_evaluation(cfg: RunConfig, run_dir: Path, result: RunResult) -> bool:
    """Return whether a run has the evaluation that `cfg` requests; True if it requests none."""
    if not asks(cfg):
        return True
    name = file_name(VALIDATION, str(result.data.get("fingerprint")), requested_protocols(cfg), [])
    return read_evaluation(run_dir / FOLDER / name) is not None


def asks(cfg: RunConfig) -> bool:
    """Return whether `cfg` requests an evaluation after training. Runs that only tune a learning rate have none."""
    return cfg.runtime.evaluate_lengths is not None and cfg.stage != "tune"
