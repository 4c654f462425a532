"""The training side of wandb: what a run is called there, and the process that follows the runs of a command (tracking.py).

A run leaves its name and configuration in its folder. One follower a command reads them, and history.jsonl and result.json,
which stay the source of truth. So nothing that trains imports wandb, waits for it or hears of it.
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
RUN = "wandb_run.json"  # in a run's folder: what the run is called at wandb, written by the run
SENT = "wandb_sent.json"  # and what wandb was sent of it, written by the follower
START_SECONDS, END_SECONDS = 20.0, 30.0  # for wandb to start, and to take the rest after the last run
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
    """Return what differs from the defaults, and the id: ``layer-gelu-<id>``, ``no_posemb-<id>``, ``baseline-<id>``."""
    words = [f"no_{axis}" if word == "none" else word for axis, word in choices.items() if defaults.get(axis) != word]
    return "-".join([*(words or ["baseline"]), run_id])


def announce(folder: Path, *, name: str, group: str | None, project: str, config: Mapping[str, Any]) -> None:
    """Write down what the run in `folder` is called at wandb, for a follower to read. A full disk costs wandb, not the run."""
    run = {"name": name, "group": group, "project": project, "config": dict(config)}
    try:
        atomic_write(folder / RUN, json.dumps(run) + "\n")
    except OSError as error:
        log.warning("wandb: %s was not written (%s); this run goes on without it", folder / RUN, access.reason(error))


def send_anew(folder: Path) -> None:
    """Have a history that was measured anew sent from its beginning, whatever wandb has of it."""
    with suppress(OSError):
        if (folder / SENT).exists():
            atomic_write(folder / SENT, '{"step": -1, "anew": true}\n')


def read_sent(folder: Path) -> dict[str, Any]:
    """Return what wandb was sent of a run: `step`, the last one; `end`, of `mark_of`, once it was ended. Empty if unknown."""
    try:
        sent = read_json(folder / SENT)
    except (OSError, ValueError):
        return {}
    return sent if isinstance(sent, dict) else {}


def mark_of(folder: Path) -> str:
    """Return a mark of what there is to send of a run: of its result, or without one of its history."""
    with suppress(OSError):
        return f"result {zlib.crc32((folder / 'result.json').read_bytes()):08x}"
    with suppress(OSError):
        return f"history {(folder / 'history.jsonl').stat().st_size}"
    return "nothing"


def unsent(folder: Path) -> bool:
    """Say whether a run was tracked and has something that wandb was not sent. One that others alone may write is theirs to send."""
    mine = bool(access.there(folder / RUN)) and os.access(folder, os.W_OK)
    return mine and read_sent(folder).get("end") != mark_of(folder)


@contextmanager
def following(
    folders: Sequence[Path],
    mode: str,
    say: Callable[[str], None] = log.warning,
    *,
    start_seconds: float = START_SECONDS,
    end_seconds: float = END_SECONDS,
) -> Iterator[subprocess.Popen[str] | None]:
    """Have the runs in `folders` followed to wandb (`mode`: online, offline or disabled) for as long as this lasts.

    Starting it takes a moment; leaving it waits for the rest to be written or uploaded, `end_seconds` at most. What was not
    sent until then is sent by the next follower. `say` gets what goes wrong, in words; nothing is raised.
    """
    process = None
    if mode != "disabled" and folders:
        try:
            process = _start([str(folder.resolve()) for folder in folders], mode, start_seconds, end_seconds)
            words = threading.Thread(target=_relay, args=(process, say), daemon=True)
            words.start()
        except (OSError, RuntimeError) as error:  # no process, or no thread, left for us
            say(f"wandb: not started ({error}); training goes on without it")
            if process is not None:
                process.kill()
                process = None
    try:
        yield process
    finally:
        if process is not None:
            _end(process, end_seconds, say)
            if words.is_alive():
                words.join(1)


def _start(folders: Sequence[str], mode: str, *seconds: float) -> subprocess.Popen[str]:
    package_parent = str(Path(__file__).resolve().parents[3])
    # The mode is decided, and a wandb service of the user's own runs is not for these.
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SERVICE")}
    environment |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}  # the latter: to wandb's makers
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


def _relay(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip("\n"))


def _end(process: subprocess.Popen[str], seconds: float, say: Callable[[str], None]) -> None:
    """Ask the follower to send the rest and go; kill it if it does not. wandb-core, its child, notices and goes too."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        say(f"wandb: not done {seconds:g} s after the end of the runs, and ended; the same command sends the rest")
    finally:
        process.kill()
        process.wait()
