"""One run, from a resolved configuration to a row on disk."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.axes import default_choices
from lmablate.errors import ConfigError
from lmablate.identity import SCIENCE_VERSION, run_id
from lmablate.run_directory import RunDirectory

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.data import TokenData
    from lmablate.trainer import Trainer

log = logging.getLogger(__name__)


def load_data(cfg: RunConfig) -> TokenData:
    """The token store of a run, built if it is not there yet."""
    from lmablate.data import prepare

    cache = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    return prepare(cfg.data, cfg.tokenizer, context_length=cfg.model.context_length, cache=cache)


def with_data(cfg: RunConfig, data: TokenData) -> RunConfig:
    """The same configuration with the vocabulary that the tokenizer really has."""
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"vocab_size": data.vocab_size})})


def execute(
    cfg: RunConfig, data: TokenData, on_status: Callable[[dict[str, Any]], None] = lambda status: None
) -> dict[str, Any]:
    """Train, evaluate and store one run; returns its result row.

    Continues from a checkpoint if there is one. On SIGTERM or SIGINT a checkpoint is written and trainer.Interrupted
    raised, with the signal's number. `on_status` sees every heartbeat.
    """
    import torch

    from lmablate.model import build_model
    from lmablate.tracking import flatten, open_tracker, resolve_mode, short_name
    from lmablate.trainer import Trainer

    torch.set_num_threads(cfg.runtime.threads)
    torch.set_flush_denormal(True)
    started = datetime.now(UTC)
    cfg = with_data(cfg, data)
    identity = run_id(cfg, data)
    directory = RunDirectory(Path(cfg.results_dir), identity)
    write_config(cfg, directory.config_path)
    trainer = Trainer(build_model(cfg), data, cfg, directory.checkpoint_dir)
    heartbeat = Heartbeat(directory, cfg, on_status)
    facts = _facts(cfg, data, identity)
    tracker = open_tracker(
        resolve_mode(cfg.runtime.wandb),
        run_id=identity,
        name=short_name(cfg.choices, default_choices(), identity),
        group=cfg.sweep,
        project=cfg.runtime.wandb_project,
        config=flatten({**facts, "config": cfg.model_dump(exclude={"runtime", "overrides", "results_dir"})}),
        directory=directory.path,
        resume=directory.checkpoint_dir.exists(),
    )
    status = "failed"
    try:
        with asked_to_stop() as stop:
            first = True
            for record in trainer.records(lambda: stop.signal):
                if first:  # whatever a killed attempt wrote after its last checkpoint is written again
                    directory.truncate_history(record["step"] - 1)
                    first = False
                directory.append(record)
                tracker.log(record)
                heartbeat.beat(record)
        result = {**facts, **_outcome(trainer, cfg, started)}
        directory.finish(result)
        status = result["status"]
    finally:
        tracker.finish(status, {} if status == "failed" else {key: result[key] for key in _SUMMARY})
    heartbeat.end(status)
    return result


_SUMMARY = (
    "status",
    "val_loss",
    "val_bpb",
    "train_loss",
    "diverged_at_step",
    "n_params",
    "n_params_non_embedding",
    "flops_per_token",
    "tokens",
)


def write_config(cfg: RunConfig, path: Path) -> None:
    """The resolved configuration as YAML; ``read_config`` gives it back."""
    import yaml

    from lmablate.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(cfg.model_dump(), sort_keys=False))


def read_config(path: Path) -> RunConfig:
    """The RunConfig of a run directory."""
    import yaml

    from lmablate.config.schema import SCHEMA_VERSION, RunConfig

    raw = yaml.safe_load(path.read_text())
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version}, and this lmablate reads {SCHEMA_VERSION}: use the release that wrote it"
        )
    return RunConfig.model_validate(raw)


def _facts(cfg: RunConfig, data: TokenData, identity: str) -> dict[str, Any]:
    """What is known of a run before it starts."""
    from lmablate.budget import flops_per_token, parameters

    counts = parameters(cfg)
    return {
        "run_id": identity,
        "science_version": SCIENCE_VERSION,
        "choices": cfg.choices,
        "seed": cfg.seed,
        "init_seed": cfg.init_seed,
        "data_seed": cfg.data_seed,
        "n_params": counts.total,
        "n_params_non_embedding": counts.non_embedding,
        "flops_per_token": flops_per_token(cfg),
        "sweep": cfg.sweep,
        "data": {
            "fingerprint": data.fingerprint,
            "tokenizer": data.tokenizer_fingerprint,
            "vocab_size": data.vocab_size,
            "train_tokens": len(data.train),
            "val_bytes": data.val_bytes,
            "val_tokens": len(data.val),
            "unigram_val_loss": data.unigram_val_loss,
            "entropy_floor": data.entropy_floor,
        },
    }


def _outcome(trainer: Trainer, cfg: RunConfig, started: datetime) -> dict[str, Any]:
    """What became of a run."""
    p = trainer.progress
    diverged = p.diverged_at_step is not None
    tokens = p.step * cfg.tokens_per_step
    return {
        "status": "diverged" if diverged else "completed",
        "tokens": tokens,
        "train_loss": None if diverged and not math.isfinite(trainer.train_loss) else trainer.train_loss,
        "init_val_loss": p.init_val_loss if math.isfinite(p.init_val_loss) else None,
        "val_loss": None if diverged else p.evaluation.val_loss,
        "val_bpb": None if diverged else p.evaluation.val_bpb,
        "diverged_at_step": p.diverged_at_step,
        "tokens_per_second": tokens / max(p.seconds, 1e-9),
        "wall_seconds": p.seconds,
        "peak_memory_bytes": peak_memory_bytes(cfg.runtime.device),
        "numerics": {
            "device": device_name(cfg.runtime.device),
            "precision": cfg.trainer.precision,
            "compiled": trainer.compiled,
            "gang": False,
            "threads": cfg.runtime.threads,
            "microbatch_size": cfg.runtime.microbatch_size,
        },
        "config": cfg.model_dump(exclude={"choices", "overrides", "runtime", "results_dir", "sweep"}),
        "provenance": provenance(cfg, started),
    }


def device_name(device: str) -> str:
    """``cpu``, or the GPU's name."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def peak_memory_bytes(device: str) -> int:
    """The largest memory of this process so far: resident on CPU, allocated by torch on a GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(cfg: RunConfig, started: datetime) -> dict[str, Any]:
    """Where, when and with what a run was made."""
    import platform

    import torch

    import lmablate

    commit, dirty = _git_state()
    return {
        "lmablate": lmablate.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git_commit": commit,
        "git_dirty": dirty,
        "host": platform.node(),
        "platform": platform.platform(),
        "threads": cfg.runtime.threads,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": cfg.overrides,
    }


def _git_state() -> tuple[str | None, bool | None]:
    """The commit of the code that ran, and whether files were changed; (None, None) outside a checkout."""
    from lmablate.paths import ROOT

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    if not (ROOT / ".git").exists():
        return None, None
    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


class Heartbeat:
    """status.json of a run: what a sweep's display reads."""

    def __init__(self, directory: RunDirectory, cfg: RunConfig, on_status: Callable[[dict[str, Any]], None]) -> None:
        self.directory, self.steps, self.on_status = directory, cfg.trainer.steps, on_status
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "step": 0, "steps": self.steps}
        self._write()

    def beat(self, record: dict[str, Any]) -> None:
        self.state |= {
            key: record[key] for key in ("step", "train_loss", "val_loss", "tokens_per_second") if key in record
        }
        self._write()

    def end(self, status: str) -> None:
        self.state["state"] = status
        self._write()

    def _write(self) -> None:
        self.directory.write_status({**self.state, "time": time.time()})
        self.on_status(dict(self.state))


class StopRequest:
    """Set by SIGTERM and SIGINT; the trainer looks at it after every step."""

    signal: int = 0  # 0: nobody asked


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first SIGINT into a request; a second SIGINT stops at once."""
    request = StopRequest()

    def note(number: int, frame: Any) -> None:
        if request.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: leave the signals to whoever owns them
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
