"""A run made again for the diagnostics it lacks, in its own folder, without losing what is there before it has ended.

History and checkpoints of the second making stand in ``RESULTS_DIR/<run_id>/again/`` and take the place of the first ones
when it is done; until then the row, its history and its last checkpoint stay as they were. A second making that is killed
continues, like any run, from its own checkpoint.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.files import read_jsonl
from lmablate.diagnostics.spikes import spike_scores
from lmablate.runs.run_directory import RunDirectory
from lmablate.runs.state import state_of
from lmablate.runs.tracking.client import send_anew
from lmablate.schema.diagnostics import asked_of, measured_until

if TYPE_CHECKING:
    from lmablate.runs.wsd_branches import Trunk
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
KEPT = ("sweep", "arm", "stage")  # of the first row: who asked for the run does not change with what is measured


class SecondMaking(RunDirectory):
    """The folder of a finished run while it is made again."""

    def __init__(self, results_dir: str | Path, run_id: str) -> None:
        super().__init__(results_dir, run_id)
        self.first = RunDirectory(results_dir, run_id)
        self.again = self.path / "again"
        self.history_path = self.again / "history.jsonl"
        self.checkpoint_dir = self.again / "checkpoint"

    def finish(self, result: RunResult) -> None:
        """Put history and checkpoint in the place of the first ones, and then the row, which says that all of it is there."""
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
    """Where a run is made: its folder, or a second making's inside of it where it was finished without what is asked for.

    A begun making whose records so far lack the diagnostics asked for begins anew.
    """
    from lmablate.training.checkpoint import checkpoints

    directory = RunDirectory(Path(cfg.results_dir), identity)
    if "diagnostics" in state_of(cfg, directory).lacks:
        log.info("run %s is done and lacks diagnostics: it is made again", identity)
        second = SecondMaking(cfg.results_dir, identity)
        second.again.mkdir(exist_ok=True)
        directory = second
    asked = asked_of(cfg)
    begun = checkpoints(directory.checkpoint_dir)
    if asked is not None and begun:
        step = int(begun[0].stem.partition("-")[2])
        if not measured_until(directory.history_path, step, asked, cfg.trainer.steps):
            log.info("run %s had begun without these diagnostics: it starts anew", identity)
            for path in begun:
                path.unlink()
            send_anew(directory.path)
    return directory


def check_trunk(trunk: Trunk | None, cfg: RunConfig) -> None:
    """Let a run start from a trunk only where the trunk's records hold the diagnostics asked for."""
    from lmablate.training.checkpoint import checkpoints

    asked = asked_of(cfg)
    if trunk is None or asked is None:
        return
    for path in checkpoints(trunk.folder, trunk.end)[:1]:
        step = int(path.stem.partition("-")[2])
        if not measured_until(trunk.history(step), step, asked, cfg.trainer.steps):
            trunk.end = -1


def with_diagnostics(cfg: RunConfig, directory: RunDirectory, result: RunResult) -> RunResult:
    """Add what a run with diagnostics says of them: what was asked for, the spike scores of its records, and, made again,
    whether it came out as before."""

    asked = asked_of(cfg)
    if asked is None:
        return result
    said: dict[str, Any] = asked.model_dump()
    if directory.history_path.exists():
        said |= spike_scores(read_jsonl(directory.history_path))
    before = directory.first.read_result() if isinstance(directory, SecondMaking) else None
    if before is not None:
        said["first_val_loss"], said["note"] = before.val_loss, _compare(before, result)
        result = result.model_copy(update={key: before[key] for key in KEPT})
        if said["note"] is not None:
            log.warning("run %s: %s", directory.run_id, said["note"])
    return result.model_copy(update={"diagnostics": said})


def _compare(before: RunResult, after: RunResult) -> str | None:
    """None where a second making gave the first one's loss to the bit; else what differs, in words."""
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
