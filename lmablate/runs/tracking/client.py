"""Start the wandb follower (follower.py) from the training side, and name runs for it.

A run leaves its name and configuration in its folder. One follower a command reads them, and history.jsonl and
result.json, which stay the source of truth. So nothing that trains imports wandb or waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lmablate.core import access
from lmablate.core.files import atomic_write, read_json

log = logging.getLogger(__name__)
RUN = "wandb_run.json"  # in a run's folder: its name and configuration at wandb, written by the run
SENT = "wandb_sent.json"  # how much of it wandb was sent, written by the follower
START_SECONDS, END_SECONDS = 20.0, 30.0  # for wandb to start, and to upload the rest after the last run
Scalar = str | int | float | bool | None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Return one level of dotted keys (``model.d_model``) over scalars; a list becomes its JSON text."""
    flat: dict[str, Scalar] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, Scalar) else str(value)
    return flat


def short_name(choices: Mapping[str, str], defaults: Mapping[str, str], run_id: str) -> str:
    """Return the choices that differ from the defaults, and the id: ``layer-gelu-<id>``, ``no_posemb-<id>``, ``baseline-<id>``."""
    changed = {axis: option for axis, option in choices.items() if defaults.get(axis) != option}
    parts = [f"no_{axis}" if option == "none" else option for axis, option in changed.items()]
    return "-".join([*(parts or ["baseline"]), run_id])


def announce(folder: Path, *, name: str, group: str | None, project: str, config: Mapping[str, Any]) -> None:
    """Write the wandb name and configuration of the run in `folder` for a follower. A failed write costs wandb, not the run."""
    run = {"name": name, "group": group, "project": project, "config": dict(config)}
    try:
        atomic_write(folder / RUN, json.dumps(run) + "\n")
    except OSError as error:
        log.warning("wandb: %s was not written (%s); this run goes on without it", folder / RUN, access.reason(error))


def send_anew(folder: Path) -> None:
    """Mark a rewritten history to be sent from its beginning."""
    with suppress(OSError):
        if (folder / SENT).exists():
            atomic_write(folder / SENT, '{"step": -1, "anew": true}\n')


def read_sent(folder: Path) -> dict[str, Any]:
    """Return what wandb was sent of a run: `step`, the last one; `end`, the `mark_of` the run when it ended. Empty if unknown."""
    try:
        sent = read_json(folder / SENT)
    except (OSError, ValueError):
        return {}
    return sent if isinstance(sent, dict) else {}


def mark_of(folder: Path) -> str:
    """Return a mark of the data to send of a run: of its result, or without one of its history."""
    with suppress(OSError):
        return f"result {zlib.crc32((folder / 'result.json').read_bytes()):08x}"
    with suppress(OSError):
        return f"history {(folder / 'history.jsonl').stat().st_size}"
    return "nothing"


def unsent(folder: Path) -> bool:
    """Return whether a run was tracked, has data that wandb was not sent, and can be written by this user."""
    mine = bool(access.there(folder / RUN)) and os.access(folder, os.W_OK)
    return mine and read_sent(folder).get("end") != mark_of(folder)


@contextmanager
def following(
    folders: Sequence[Path],
    mode: str,
    warn: Callable[[str], None] = log.warning,
    *,
    start_seconds: float = START_SECONDS,
    end_seconds: float = END_SECONDS,
) -> Iterator[subprocess.Popen[str] | None]:
    """Run a follower that sends the runs in `folders` to wandb (`mode`: online, offline or disabled) inside this
    context. Starting takes a moment. Leaving waits up to `end_seconds` for the rest to be written or uploaded; the next
    follower sends the remainder. `warn` is called with a message on each failure; nothing is raised."""
    process = None
    if mode != "disabled" and folders:
        try:
            process = _start([str(folder.resolve()) for folder in folders], mode, start_seconds, end_seconds)
            relay = threading.Thread(target=_relay, args=(process, warn), daemon=True)
            relay.start()
        except (OSError, RuntimeError) as error:  # the limit of processes or threads is reached
            warn(f"wandb: not started ({error}); training goes on without it")
            if process is not None:
                process.kill()
                process = None
    try:
        yield process
    finally:
        if process is not None:
            _end(process, end_seconds, warn)
            if relay.is_alive():
                relay.join(1)


def _start(folders: Sequence[str], mode: str, *seconds: float) -> subprocess.Popen[str]:
    package_parent = str(Path(__file__).resolve().parents[3])
    # The mode is decided already, and a wandb service of the user's other runs must not serve these.
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SERVICE")}
    environment |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # reports would go to wandb's developers
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the child, until it can take it
    try:
        with tempfile.TemporaryFile("w+") as listed:
            json.dump(folders, listed)
            listed.seek(0)
            return subprocess.Popen(
                [sys.executable, "-m", "lmablate.runs.tracking.follower", mode, *map(str, seconds)],
                stdin=listed,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the runs, which then say how they ended
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _relay(process: subprocess.Popen[str], warn: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        warn(line.rstrip("\n"))


def _end(process: subprocess.Popen[str], seconds: float, warn: Callable[[str], None]) -> None:
    """Ask the follower to send the rest and exit; kill it if it does not. Its child wandb-core then exits too."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        warn(f"wandb: not done {seconds:g} s after the end of the runs, and ended; the same command sends the rest")
    finally:
        process.kill()
        process.wait()
