"""What the tests of the wandb mirror share: a run, a home without wandb, and stand-ins for wandb's server on loopback."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lmablate.runs.tracking.worker import open_tracker

ID, KEY = "1f2e3d4c5b6a", "0123456789" * 4
CONFIG = {"norm": "layer", "model.d_model": 128, "optim.lr": 1e-3, "compile": False, "model.d_ff": None}


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


def start(mode, directory, *, resume=False, **timeouts):
    options = {"run_id": ID, "name": f"layer-{ID}", "group": "norms", "project": "ablations", "config": CONFIG}
    return open_tracker(mode, **options, directory=directory, resume=resume, **timeouts)


def record(step, **more):
    """A line of history.jsonl, its numbers long enough to be spoilt by any rounding."""
    numbers = {"seconds": step / 7, "train_loss": 5 / (step + 3), "lr": 1e-3 / (step + 1)}
    return {"step": step, "tokens": step * 2048, **numbers, **more}


def write_history(directory, steps):
    lines = (json.dumps(record(step, val_loss=None)) + "\n" for step in range(steps))
    (directory / "history.jsonl").write_text("".join(lines))


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
                data = json.dumps(owner.graphql(body) if self.path == "/graphql" else owner.stream(body)).encode()
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

    def stream(self, body: dict[str, Any]) -> dict[str, Any]:
        (run,) = self.runs.values()
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
