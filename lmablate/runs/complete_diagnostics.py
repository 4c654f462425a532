"""Rerun a finished run for the diagnostics that it lacks, without losing the first result before the rerun has ended.

The rerun writes history and checkpoints to ``RESULTS_DIR/<run_id>/again/``. They replace the first ones when it is
done; until then the row, its history and its last checkpoint stay as they were. A rerun that is killed continues, like
any run, from its own checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.files import read_jsonl
from lmablate.diagnostics.spikes import early_attention_logit, spike_scores
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.state import state_of
from lmablate.runs.tracking.client import send_anew
from lmablate.schema.diagnostics import measured_until, requested_diagnostics

if TYPE_CHECKING:
    from lmablate.runs.wsd_branches import Trunk
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
KEPT = ("sweep", "arm", "stage")  # columns of the first row: a measurement does not change who requested the run


class DiagnosticsRerun(RunDirectory):
    """The folder of a finished run during a rerun."""

    def __init__(self, results_dir: str | Path, run_id: str) -> None:
        super().__init__(results_dir, run_id)
        self.first = RunDirectory(results_dir, run_id)
        self.again = self.path / "again"
        self.history_path = self.again / "history.jsonl"
        self.checkpoint_dir = self.again / "checkpoint"

    def finish(self, result: RunResult) -> None:
        """Replace history and checkpoint by those of the rerun, and then the row, which marks them as complete."""
        old = self.path / "again.old"
        shutil.rmtree(old, ignore_errors=True)
        os.replace(self.history_path, self.first.history_path)
        send_anew(self.path)
        if self.checkpoint_dir.exists():
            if self.first.checkpoint_dir.exists():
                os.replace(self.first.checkpoint_dir, old)
            os.replace(self.checkpoint_dir, self.first.checkpoint_dir)
        super().finish(result)
        shutil.rmtree(self.again, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def open_directory(cfg: RunConfig, identity: str) -> RunDirectory:
    """Return the folder to train in: the run's own, or its ``again/`` if the finished run lacks requested diagnostics.
    A rerun starts from scratch if its records so far lack the requested diagnostics."""
    from lmablate.training.checkpoint import checkpoints

    directory = RunDirectory(Path(cfg.results_dir), identity)
    if "diagnostics" in state_of(cfg, directory).lacks:
        log.info("run %s is done and lacks diagnostics: it is made again", identity)
        second = DiagnosticsRerun(cfg.results_dir, identity)
        second.again.mkdir(exist_ok=True)
        directory = second
    requested = requested_diagnostics(cfg)
    begun = checkpoints(directory.checkpoint_dir)
    if requested is not None and begun:
        step = int(begun[0].stem.partition("-")[2])
        if not measured_until(directory.history_path, step, requested, cfg.trainer.steps):
            log.info("run %s had begun without these diagnostics: it starts anew", identity)
            for path in begun:
                path.unlink()
            send_anew(directory.path)
    return directory


def check_trunk_diagnostics(trunk: Trunk | None, cfg: RunConfig) -> None:
    """Keep a run from starting at a trunk whose records lack the requested diagnostics."""
    from lmablate.training.checkpoint import checkpoints

    requested = requested_diagnostics(cfg)
    if trunk is None or requested is None:
        return
    for path in checkpoints(trunk.folder, trunk.end)[:1]:
        step = int(path.stem.partition("-")[2])
        if not measured_until(trunk.history(step), step, requested, cfg.trainer.steps):
            trunk.end = -1


def add_diagnostics_summary(cfg: RunConfig, directory: RunDirectory, result: RunResult) -> RunResult:
    """Add the diagnostics summary to a result: the settings, the spike scores, the attention logit early in training, and for a
    rerun how it compares with the first."""
    requested = requested_diagnostics(cfg)
    if requested is None:
        return result
    summary: dict[str, Any] = requested.model_dump()
    if directory.history_path.exists():
        records = read_jsonl(directory.history_path)
        summary |= spike_scores(records)
        summary["early_max_attention_logit"] = early_attention_logit(records, cfg.trainer.steps)
    before = directory.first.read_result() if isinstance(directory, DiagnosticsRerun) else None
    if before is not None:
        summary["first_val_loss"], summary["note"] = before.val_loss, _compare(before, result)
        result = result.model_copy(update={key: before[key] for key in KEPT})
        if summary["note"] is not None:
            log.warning("run %s: %s", directory.run_id, summary["note"])
    return result.model_copy(update={"diagnostics": summary})


def _compare(before: RunResult, after: RunResult) -> str | None:
    """Return None if a rerun gave the same loss to the bit, or else a message that says what differs."""
    if (before.status, before.val_loss) == (after.status, after.val_loss):
        return None
    here = {**before.numerics, "host": before.provenance.get("host")}
    there = {**after.numerics, "host": after.provenance.get("host")}
    moved = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    why = (
        f"made with other {', '.join(moved)}"
        if moved
        else "although device, precision and compilation are the same: libraries or processor must differ"
    )
    first = f"{before.status}, val_loss {before.val_loss}"
    return f"made again for its diagnostics it came out {after.status}, val_loss {after.val_loss}, after {first}, {why}"
