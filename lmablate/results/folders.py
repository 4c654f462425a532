"""Results directories as a user names them, and the words for what a row was computed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmablate.runs.run_directory import check_readable

ResultsDir = str | Path | Iterable[str | Path]


class SkippedFile(UserWarning):
    """Files of a results directory were left out, being damaged or of runs that count elsewhere; the message names them."""


def result_folders(results_dir: ResultsDir) -> list[Path]:
    """The folders named, each once; raises ConfigError for one that is none."""
    named = [results_dir] if isinstance(results_dir, str | Path) else results_dir
    folders = list({Path(folder).resolve(): Path(folder) for folder in reversed(list(named))}.values())[::-1]
    for folder in folders:
        check_readable(folder)
    return folders


def numerics_words(numerics: dict[str, Any]) -> str:
    """What may move a run's last bits, in words: ``cpu fp32 eager``, ``cpu bf16 compiled gang threads=4``."""
    words = [str(numerics.get("device", "?")), str(numerics.get("precision", "?"))]
    words.append("compiled" if numerics.get("compiled") else "eager")
    words += ["gang"] if numerics.get("gang") else []
    words += [f"{numerics['parallel']} x{numerics.get('ranks')}"] if numerics.get("parallel") else []
    words += [f"threads={numerics['threads']}"] if (numerics.get("threads") or 1) > 1 else []
    words += [f"microbatch={numerics['microbatch_size']}"] if numerics.get("microbatch_size") else []
    return " ".join(words)
