"""Resolve results directories given by the user, and describe a row's numerics."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmablate.runs.run_directory import check_readable

ResultsDir = str | Path | Iterable[str | Path]


class SkippedFile(UserWarning):
    """The warning about files of a results directory that are damaged, or of runs that count elsewhere; it names them."""


def result_folders(results_dir: ResultsDir) -> list[Path]:
    """Return the given folders, each once. Raises ConfigError for one that is no readable folder."""
    named = [results_dir] if isinstance(results_dir, str | Path) else results_dir
    # realpath and not resolve, which raises for a link to itself; check_readable says what is wrong with one
    folders = list({os.path.realpath(folder): Path(folder) for folder in reversed(list(named))}.values())[::-1]
    for folder in folders:
        check_readable(folder)
    return folders


def numerics_text(numerics: dict[str, Any]) -> str:
    """Return what may move a run's last bits as text: ``cpu fp32 eager``, ``cpu bf16 compiled gang threads=4``."""
    parts = [str(numerics.get("device", "?")), str(numerics.get("precision", "?"))]
    parts.append("compiled" if numerics.get("compiled") else "eager")
    parts += ["gang"] if numerics.get("gang") else []
    parts += [f"{numerics['parallel']} x{numerics.get('ranks')}"] if numerics.get("parallel") else []
    parts += [f"threads={numerics['threads']}"] if (numerics.get("threads") or 1) > 1 else []
    parts += [f"microbatch={numerics['microbatch_size']}"] if numerics.get("microbatch_size") else []
    return " ".join(parts)
