"""Read and write the folder of one run.

``RESULTS_DIR/<run_id>/`` holds `config.yaml`, `history.jsonl` (one flushed line a record), `status.json` (a heartbeat),
`attempts.jsonl` (host, pid and start step of each attempt), `log.txt`, `checkpoint/`, `.lock` (locks.py),
`wandb_run.json` and `wandb_sent.json` (tracking/client.py) and `result.json`. That is written last and atomically: its
presence means the run is done. It carries a checksum, so that a changed number is noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import append_line, atomic_write, finite, make_folder, parsed, read_json
from lmablate.core.locks import NAME as LOCK
from lmablate.core.paths import CHECKPOINTS, given_path
from lmablate.core.secrets import redacted
from lmablate.schema.result import CHECKSUM, RunResult, checksum, parse_result

RUN_ID = re.compile(r"[0-9a-f]{4,64}")  # the name of a run's folder


class RunDirectory:
    """The folder of one run. Creating the object touches nothing; the first write makes the folder."""

    def __init__(self, results_dir: str | Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = Path(results_dir) / run_id
        self.config_path = self.path / "config.yaml"
        self.history_path = self.path / "history.jsonl"
        self.result_path = self.path / "result.json"
        self.status_path = self.path / "status.json"
        self.attempts_path = self.path / "attempts.jsonl"
        self.lock_path = self.path / LOCK
        self.log_path = self.path / "log.txt"
        self.checkpoint_dir = self.path / CHECKPOINTS

    @classmethod
    def at(cls, path: Path) -> RunDirectory:
        """Return the run whose folder is `path`."""
        return cls(path.absolute().parent, path.absolute().name)

    def create(self) -> RunDirectory:
        """Make the folder unless it exists."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def append(self, record: dict[str, Any]) -> None:
        """Append one record to history.jsonl and flush it; non-finite numbers become null."""
        self.create()
        append_line(self.history_path, _json(record).encode())

    def append_attempt(self, attempt: dict[str, Any]) -> None:
        """Append one line to attempts.jsonl."""
        append_line(self.attempts_path, _json(attempt).encode())

    def log(self, text: str) -> None:
        """Append a line with the time to log.txt, which also takes the process's output. A failed write does not stop
        the run."""
        with suppress(OSError):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            append_line(self.log_path, redacted(f"{now} {text}").encode(errors="backslashreplace"))

    def truncate_history(self, step: int) -> list[dict[str, Any]]:
        """Remove the records after `step` (-1: all) and unreadable lines, and return the rest. A resume needs this,
        since it writes the records after its checkpoint again."""
        if not self.history_path.exists():
            return []
        raw = self.history_path.read_bytes()
        parsed = (_record(line) for line in raw.split(b"\n"))
        kept = [record for record in parsed if record is not None and record["step"] <= step]
        text = "".join(_json(record) + "\n" for record in kept)
        if text.encode() != raw:
            atomic_write(self.history_path, text)
        return kept

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace status.json atomically, so that no reader sees half of it, but without forcing it to disk."""
        self.create()
        atomic_write(self.status_path, _json(status) + "\n", durable=False)

    def read_status(self) -> dict[str, Any]:
        """Return the content of status.json; empty if it cannot be read."""
        try:
            status = read_json(self.status_path)
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def finish(self, result: RunResult) -> None:
        """Write result.json, which marks the run as done. Raises ValueError for the result of another run."""
        if result.run_id != self.run_id:
            raise ValueError(f"result of run {result.run_id} handed to the folder of run {self.run_id}")
        self.create()
        row = json.loads(_json(result.model_dump(exclude_unset=True)))
        atomic_write(self.result_path, _json({**row, CHECKSUM: checksum(row)}, indent=1) + "\n")

    @property
    def is_done(self) -> bool:
        """Return whether result.json can be read. A damaged one does not count, so that the run is made again."""
        return self.read_result() is not None

    def read_result(self) -> RunResult | None:
        """Return the result, or None if it cannot be read."""
        return read_result_file(self.result_path)[0]


def run_path(text: str) -> Path:
    """Return the folder of a run given to a command. The beginning of an id is enough if only one run has it. Raises
    argparse.ArgumentTypeError if several have it."""
    path = given_path(text)
    if re.fullmatch(r"[0-9a-f]{4,11}", path.name) and not path.exists():
        with suppress(OSError):
            found = sorted(one for one in path.parent.glob(f"{path.name}*") if re.fullmatch(r"[0-9a-f]{12}", one.name))
            if len(found) > 1:
                raise argparse.ArgumentTypeError(
                    f"{text}: several runs begin so: {', '.join(one.name for one in found)}"
                )
            return found[0] if found else path
    return path


def below(folder: Path) -> list[Path]:
    """Return the results directories directly inside a folder."""
    with suppress(OSError):
        return sorted(one for one in folder.iterdir() if one.is_dir() and holds_runs(one))
    return []


def holds_runs(folder: Path) -> bool:
    """Return whether a folder is a results directory or the folder of a run."""
    try:
        return (folder / "result.json").is_file() or any(folder.glob("*/result.json"))
    except OSError:
        return False


def check_writable(folder: str | Path, key: str = "results_dir", *, keep: bool = True) -> None:
    """Make `folder` if it is missing and write a probe into it. Without `keep`, remove the folders made for that; kept
    ones are removed with a refused command (files.make_folder). Raises ConfigError that names the folder, the reason
    and the remedy (`key`=...), also for an ``--out`` that holds runs."""
    if key == "--out" and holds_runs(Path(folder)):
        raise ConfigError(
            f"{key} {folder}: runs are there; choose another folder, so that nothing else lies among them"
        )
    made = [one for one in (Path(folder), *Path(folder).parents) if access.there(one) is False]
    why = unwritable(Path(folder))
    for one in [] if keep else made:
        with suppress(OSError):  # somebody has written there since
            one.rmdir()
    if why:
        mend = f"choose another folder ({key}=PATH)" if "-" not in key else f"choose another folder ({key} PATH)"
        raise ConfigError(f"{key}: cannot write to {folder} ({why}): {mend}, or make this one writable")


def unwritable(folder: Path) -> str:
    """Return why nothing can be written to `folder`, or "". Makes the folder if it is missing."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder, prefix=".probe."):
            return ""
    except PermissionError as error:
        return access.reason(error)
    except OSError as error:
        return (error.strerror or str(error)).lower()


def check_readable(folder: Path, key: str = "results_dir=") -> None:
    """Raise ConfigError unless `folder` is a readable directory. The message begins with `key` and the folder."""
    found = access.there(folder)
    if found is False or (found and not folder.is_dir()):
        what = "a file, not a folder" if found else "no such folder"
        raise ConfigError(f"{key}{folder}: {what}; give the folder that training wrote to (results by default)")
    try:
        os.listdir(folder)
        why = access.why_closed(folder)
    except OSError as error:
        why = access.reason(error)
    if why:
        raise ConfigError(f"{key}{folder}: {why}")


def read_result_file(path: Path) -> tuple[RunResult | None, str]:
    """Read a result.json. Returns the result and "", or None and the reason."""
    try:
        row = read_json(path)
    except OSError as error:
        return None, access.reason(error)
    except ValueError as error:
        return None, f"not JSON ({error})"
    return parse_result(row)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parsed(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _json(value: Any, indent: int | None = None) -> str:
    return redacted(json.dumps(finite(value), allow_nan=False, indent=indent))
