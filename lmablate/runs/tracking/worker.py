"""The mirror of a run in wandb; history.jsonl and result.json stay the source of truth.

wandb lives in a process of its own (this file, run as ``python -m lmablate.runs.tracking.worker``), which a thread of the training
process feeds with JSON lines (mirror.py). So the training process imports no wandb, waits for it nowhere but in
`Tracker.finish`, can end it at a deadline, and shows the same memory with it and without. When training is killed, the
process sees its input end, writes what it was given, marks the run as failed (exit code 1) and goes.

- The id is the run id, with ``resume="allow"``, always. Online, a rerun continues the same wandb run. Offline, each
  attempt leaves a segment (``wandb/offline-run-<time>-<id>``), which `wandb sync` appends in order of time.
- A resumed run starts again at its checkpoint, so the steps between checkpoint and kill are logged twice. No wandb step
  is passed, since wandb drops steps that go back; charts run over `tokens`, where repeated points lie on each other
  (`seconds` and `tokens_per_second` may differ). `read_offline` lets the later attempt win, as history.jsonl does. What
  never reached the mirror (machine lost, wandb off or down at the time) is sent from history.jsonl first.
- Sent: the flat configuration, the records, the summary. Not sent: code, diffs, requirements, arguments, host, hardware,
  system metrics, terminal output, error reports.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lmablate.core.errors import ConfigError
from lmablate.runs.tracking.account import configured_mode
from lmablate.runs.tracking.client import Message, Tracker, plain

if TYPE_CHECKING:
    import wandb

__all__ = ["MODES", "Tracker", "flatten", "open_tracker", "read_offline", "resolve_mode", "short_name"]

MODES = ("auto", "online", "offline", "disabled")
Scalar = str | int | float | bool | None
_BLOCK = 32 * 1024  # bytes of a block of wandb's log
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as wandb spells them in JSON


def resolve_mode(mode: str) -> str:
    """``online``, ``offline`` or ``disabled`` for a value of runtime.wandb; neither wandb nor the network is asked.

    ``auto`` follows WANDB_MODE and wandb's settings files; else it is online if a key is configured and otherwise off,
    which a hint says once. Raises ConfigError for any other word.
    """
    if mode not in MODES:
        raise ConfigError(f"runtime.wandb={mode}: unknown; use one of {', '.join(MODES)}")
    return configured_mode() if mode == "auto" else mode


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """One level of dotted keys (``model.d_model``) over scalars; a list becomes its JSON text."""
    flat: dict[str, Scalar] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = json.dumps(value, default=plain)
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, Scalar) else plain(value)
    return flat


def short_name(choices: Mapping[str, str], defaults: Mapping[str, str], run_id: str) -> str:
    """What differs from the defaults, and the id: ``layer-gelu-<id>``, ``no_posemb-<id>``, ``baseline-<id>``."""
    words = [f"no_{axis}" if word == "none" else word for axis, word in choices.items() if defaults.get(axis) != word]
    return "-".join([*(words or ["baseline"]), run_id])


def open_tracker(
    mode: str,
    *,
    run_id: str,
    name: str,
    group: str | None,
    project: str,
    config: Mapping[str, Any],
    directory: Path,
    resume: bool,
    start_timeout: float = 20,
    finish_timeout: float = 30,
) -> Tracker:
    """Mirror a run. Returns at once: wandb starts beside the training. Trouble is logged as a warning, never raised.

    `directory` is the run's folder; its ``wandb/`` takes the files. `resume` says that history.jsonl holds an earlier
    attempt. What is not online after `start_timeout` seconds goes offline, with one warning, and what cannot go offline
    either goes unmirrored, with one warning. `Tracker.finish` takes `finish_timeout` seconds at most.
    Raises ConfigError for an unknown mode.
    """
    run = {"run_id": run_id, "name": name, "group": group, "project": project, "config": dict(config)}
    run["directory"] = str(Path(directory).resolve())
    return Tracker(resolve_mode(mode), run, resume=resume, start_timeout=start_timeout, finish_timeout=finish_timeout)


def read_offline(directory: Path) -> dict[str, Any]:
    """What wandb's files in a run's folder hold: `run_id, name, group, project, config, history, summary, exit_code`.

    All attempts are merged in order of time. `history` has the records as they were logged, without wandb's own keys;
    where a later attempt repeats steps, its records replace the earlier ones. `exit_code` is the last attempt's, None if
    it was never ended. A torn end of a file is left out. Raises FileNotFoundError if there are no such files.
    """
    found = (_segment(path) for path in Path(directory).glob("wandb/*/*.wandb"))
    segments = sorted(
        (one for one in found if one["run_id"]), key=lambda one: one["started"]
    )  # without: it never began
    if not segments:
        raise FileNotFoundError(f"{directory}: no wandb files; runtime.wandb=offline writes them")
    run: dict[str, Any] = {**segments[-1], "config": {}, "summary": {}, "history": []}
    for segment in segments:
        run["config"] |= segment["config"]
        run["summary"] |= segment["summary"]
        first = min((record["step"] for record in segment["history"] if "step" in record), default=math.inf)
        run["history"] = [record for record in run["history"] if record.get("step", -1) < first] + segment["history"]
    del run["started"]
    return run


def _segment(path: Path) -> dict[str, Any]:
    """One .wandb file, read as `read_offline` says, and when it was started."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] # made at import

    found: dict[str, Any] = dict.fromkeys(("run_id", "name", "group", "project", "exit_code"))
    found |= {"started": (0, path.parent.name), "config": {}, "summary": {}, "history": []}
    for data in _frames(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("run"):
            run = record.run
            found |= {"run_id": run.run_id, "name": run.display_name, "project": run.project}
            found |= {"group": run.run_group or None, "started": (run.start_time.ToNanoseconds(), path.parent.name)}
            found["config"] |= _items(run.config.update)
        elif record.HasField("config"):
            found["config"] |= _items(record.config.update)
        elif record.HasField("history"):
            found["history"].append(_items(record.history.item))
        elif record.HasField("summary"):
            found["summary"] |= _items(record.summary.update)
        elif record.HasField("exit"):
            found["exit_code"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    """Key and value of wandb's items, those of its own (``_step``, ``_wandb.runtime``) left out."""
    pairs = ((item.key or ".".join(item.nested_key), json.loads(item.value_json)) for item in items)
    return {
        key: _NUMBERS.get(value, value) if isinstance(value, str) else value for key, value in pairs if key[0] != "_"
    }


def _frames(log: bytes) -> Iterator[bytes]:
    """The records of wandb's log: a 7-byte file header, then blocks of chunks (checksum, length, kind, data), where a
    record that does not fit into its block goes on in the next (kinds: 1 whole, 2 first, 3 middle, 4 last)."""
    position, parts = 7, list[bytes]()
    while position + 7 <= len(log):
        if _BLOCK - position % _BLOCK < 7:  # no room for a chunk: padding
            position += _BLOCK - position % _BLOCK
            continue
        checksum, size, kind = struct.unpack_from("<IHB", log, position)
        data = log[position + 7 : position + 7 + size]
        if len(data) < size or zlib.crc32(bytes([kind]) + data) != checksum:
            return  # torn by a kill
        parts = [data] if kind in (1, 2) else [*parts, data]
        if kind in (1, 4):
            yield b"".join(parts)
        position += 7 + size


def _serve() -> None:
    """wandb's process: a run, its records and its end come in as JSON lines; what became of it goes out."""
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # wandb-core inherits these, and must not hold the pipes
    os.dup2(null, 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # the end is for the training process to tell
        signal.signal(number, signal.SIG_IGN)
    run = json.loads(lines.readline())
    threading.Thread(target=_leave_when_orphaned, args=(os.getppid(), sum(run["timeouts"])), daemon=True).start()
    try:
        uploaded = _mirror(run, lines, lambda message: print(json.dumps(message), file=answers, flush=True))
        print(json.dumps({"uploaded": uploaded}), file=answers, flush=True)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps({"error": reason[:300]}), file=answers, flush=True)
    os._exit(0)  # all is written; wandb-core, if it still hangs on a server, goes with us


def _mirror(run: Message, lines: TextIO, answer: Any) -> bool:
    """One run from start to end; False if the server has not taken all of it in time."""
    import wandb

    mirrored, last_step = _init(run)
    answer({"folder": str(Path(mirrored.dir).parent), "last_step": last_step})
    end: Message = {"exit_code": 1, "summary": {"status": "failed"}}  # for input that ends without an end: a kill
    for line in lines:
        if not line.endswith("\n"):
            break
        message = json.loads(line)
        if "finish" in message:
            end = message["finish"]
            break
        mirrored.log(message["log"])
    mirrored.summary.update(end["summary"])
    try:
        mirrored.finish(exit_code=end["exit_code"])
    except TimeoutError:
        return False
    wandb.teardown()
    return True


def _init(run: Message) -> tuple[wandb.Run, int | None]:
    """The wandb run, and the last step that the mirror already has of it."""
    import wandb

    folder = Path(run["directory"])
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    last_step = _last_step(folder) if run["mode"] == "offline" else None
    start_timeout, finish_timeout = run["timeouts"]
    settings = wandb.Settings(
        # wandb's own limits lie inside ours, so that it can say what went wrong.
        init_timeout=0.6 * start_timeout,
        finish_timeout=0.7 * finish_timeout,
        finish_timeout_raises=True,
        console="off",
        silent=True,
        symlink=False,
        use_dot_wandb=False,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        label_disable=True,
        host="",
        program="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    mirrored = wandb.init(
        mode=run["mode"],
        id=run["run_id"],
        name=run["name"],
        group=run["group"],
        project=run["project"],
        config=run["config"],
        dir=folder,
        resume="allow",
        settings=settings,
    )
    mirrored.define_metric("tokens")
    mirrored.define_metric("*", step_metric="tokens")
    return mirrored, mirrored.summary.get("step") if mirrored.resumed else last_step


def _last_step(folder: Path) -> int | None:
    """The last step in wandb's files so far; None also where they cannot be read."""
    try:
        return read_offline(folder)["history"][-1]["step"]
    except Exception:  # a file of another version, damaged in a new way: the mirror is then sent the whole history
        return None


def _leave_when_orphaned(parent: int, seconds: float) -> None:
    """However wandb hangs: when training has gone, so has this, `seconds` later."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(seconds)
    os._exit(1)


if __name__ == "__main__":
    _serve()
