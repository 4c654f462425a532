"""What the tests of wandb share: a run, a reader of wandb's files, a home without wandb, stand-ins for its server on loopback."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] # made at import

from lmablate.core.locks import FileLock
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.tracking.client import announce
from lmablate.schema.result import RunResult

ID, KEY = "1f2e3d4c5b6a", "0123456789" * 4
CONFIG = {"norm": "layer", "model.d_model": 128, "optim.lr": 1e-3, "compile": False, "model.d_ff": None}
FINAL = {
    "val_loss": 1.25,
    "val_bpb": 0.5,
    "train_loss": 1.5,
    "diverged_at_step": None,
    "n_params": 2**53 + 1,
    "tokens": 99,
}
FINAL |= {"n_params_non_embedding": 7, "flops_per_token": 8}
BLOCK = 32 * 1024  # bytes of a block of wandb's log
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as wandb spells them in JSON


class Training:
    """What a run leaves in its folder while it trains, without the training."""

    def __init__(self, results: Path, run_id: str = ID) -> None:
        self.directory = RunDirectory(results, run_id)
        self.path = self.directory.create().path
        self.lock: FileLock | None = None

    def begin(self, **more: Any) -> Training:
        """Take the lock, and say what the run is called."""
        self.lock = FileLock.acquire(self.directory.lock_path)
        announce(
            self.path,
            **{"name": f"layer-{self.path.name}", "group": "norms", "project": "ablations", "config": CONFIG, **more},
        )
        return self

    def train(self, *steps: int, **more: Any) -> Training:
        for step in steps:
            self.directory.append(record(step, **more))
        return self

    def stop(self) -> None:
        """Leave without a result."""
        assert self.lock is not None
        self.lock.release()

    def end(self, **changed: Any) -> None:
        """Leave with a result."""
        row = {"run_id": self.path.name, "science_version": 1, "status": "completed", "choices": {}, "seed": 0, **FINAL}
        row |= {
            "init_val_loss": 5.0,
            "tokens_per_second": 1.0,
            "wall_seconds": 1.0,
            "peak_memory_bytes": 1,
            "numerics": {},
        }
        self.directory.finish(RunResult.model_validate({**row, "provenance": {}, **changed}))
        self.stop()


def home_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, a working folder and an environment in which nobody has heard of wandb; no server of the outside is named."""
    for name in [*os.environ]:
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    (folder / "work").mkdir(parents=True)
    monkeypatch.chdir(folder / "work")
    monkeypatch.setenv("HOME", str(folder))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refuses
    return folder


def record(step, **more):
    """A line of history.jsonl, its numbers long enough to be spoilt by any rounding."""
    numbers = {"seconds": step / 7, "train_loss": 5 / (step + 3), "lr": 1e-3 / (step + 1)}
    return {"step": step, "tokens": step * 2048, **numbers, **more}


def warnings_of(caplog):
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def sync(*words):
    """wandb's own command."""
    command = [Path(sys.executable).with_name("wandb"), *words]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class WandbServer:
    """Keeps what it is sent: `runs[run id]` has `history` (records), `summary`, `config`, `upsert` (group, name, ...)."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.paths: set[str] = set()
        self.started = threading.Event()  # a run was taken
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None:
                pass

            def do_POST(self) -> None:
                owner.paths.add(self.path)
                raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
                body = json.loads(gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw)
                data = json.dumps(owner.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        variables = body["variables"]
        run = self.runs.get(variables.get("name", ""))
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if body["operationName"] == "RunResumeStatus":
            return {"data": {"model": {**project, "bucket": run and self._bucket(variables["name"], run)}}}
        if body["operationName"] == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], {"history": [], "summary": "{}", "upsert": variables})
            run["config"] = variables["config"]
            self.started.set()
            bucket = {**self._bucket(variables["name"], run), "sweepName": None, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if body["operationName"] == "CreateRunFiles":
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}}
        return {"data": {}}

    def _bucket(self, name: str, run: dict[str, Any]) -> dict[str, Any]:
        lines = {"historyLineCount": len(run["history"]), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]), "eventsTail": "[]"}
        texts = {"description": "", "notes": "", "tags": [], "wandbConfig": '{"t": {}}'}
        known = {"summaryMetrics": run["summary"], "config": run.get("config", "{}")}
        return {"id": "b", "name": name, "displayName": name, **lines, **tails, **texts, **known}

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.graphql(body) if path == "/graphql" else self.stream(self.runs[path.split("/")[-2]], body)

    def stream(self, run: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run["history"][part["offset"] :] = [json.loads(line) for line in part["content"]]
            elif name == "wandb-summary.json":
                run["summary"] = part["content"][-1]
        if body.get("complete"):
            run["exit_code"] = body["exitcode"]
        return {"exitcode": None, "limits": {}}


class SilentServer:
    """Takes every connection and never answers."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def stop(self) -> None:
        self.socket.close()


def read_offline(directory: Path) -> dict[str, Any]:
    """What wandb's files in a run's folder hold: `run_id, name, group, project, config, history, summary, exit_code`.

    All segments in order of time. `history` has the records as they were logged, without wandb's own keys. `exit_code` is the
    last one's, None if it was never ended. A torn end of a file is left out.
    """
    found = (_segment(path) for path in Path(directory).glob("wandb/*/*.wandb"))
    segments = sorted((one for one in found if one["run_id"]), key=lambda one: one["started"])
    run: dict[str, Any] = {**segments[-1], "config": {}, "summary": {}, "history": [], "segments": len(segments)}
    for segment in segments:
        run["config"] |= segment["config"]
        run["summary"] |= segment["summary"]
        run["history"] += segment["history"]
    return run


def steps_in(directory: Path) -> list[int]:
    return [line["step"] for line in read_offline(directory)["history"]]


def _segment(path: Path) -> dict[str, Any]:
    """One .wandb file, and when it was begun."""
    found: dict[str, Any] = dict.fromkeys(("run_id", "name", "group", "project", "exit_code"))
    found |= {"started": (0, path.parent.name), "config": {}, "summary": {}, "history": []}
    for one in records_of(path):
        if one.HasField("run"):
            run = one.run
            found |= {"run_id": run.run_id, "name": run.display_name, "project": run.project}
            found |= {"group": run.run_group or None, "started": (run.start_time.ToNanoseconds(), path.parent.name)}
            found["config"] |= _items(run.config.update)
        elif one.HasField("config"):
            found["config"] |= _items(one.config.update)
        elif one.HasField("history"):
            found["history"].append(_items(one.history.item))
        elif one.HasField("summary"):
            found["summary"] |= _items(one.summary.update)
        elif one.HasField("exit"):
            found["exit_code"] = one.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    """Key and value of wandb's items, those of its own (``_step``, ``_wandb.runtime``) left out."""
    pairs = ((item.key or ".".join(item.nested_key), json.loads(item.value_json)) for item in items)
    return {
        key: NUMBERS.get(value, value) if isinstance(value, str) else value for key, value in pairs if key[0] != "_"
    }


def records_of(path: Path) -> Iterator[Any]:
    """The records of wandb's log: a 7-byte file header, then blocks of chunks (checksum, length, kind, data), where a
    record that does not fit into its block goes on in the next (kinds: 1 whole, 2 first, 3 middle, 4 last)."""
    log, position, parts = path.read_bytes(), 7, list[bytes]()
    while position + 7 <= len(log):
        if BLOCK - position % BLOCK < 7:  # no room for a chunk: padding
            position += BLOCK - position % BLOCK
            continue
        checksum, size, kind = struct.unpack_from("<IHB", log, position)
        data = log[position + 7 : position + 7 + size]
        if len(data) < size or zlib.crc32(bytes([kind]) + data) != checksum:
            return  # torn by a kill
        parts = [data] if kind in (1, 2) else [*parts, data]
        if kind in (1, 4):
            yield Record.FromString(b"".join(parts))
        position += 7 + size
