"""Train several token budgets in one run: a stable trunk, and a decay for each budget (``schedule=wsd_branches``).

A branch of S steps is the same run as ``schedule=wsd trainer.steps=S`` with the same warmup, to the bit and by its run
id: up to the start of its decay, all are one trajectory (Haegele et al. 2024, arXiv 2405.18392). So the longest one
leaves a checkpoint at each such step in ``RESULTS_DIR/.trunks/<trunk>/``, and the others start there. Runs of one trunk
share data, draws and most of their steps: they are budgets to compare, never seeds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.core import access
from lmablate.core.files import atomic_write
from lmablate.schema.identity import science
from lmablate.schema.training_config import LENGTHS

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
FOLDER = ".trunks"


def expand(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the configurations, with each one that has branches replaced by a run per branch, shortest first."""
    out = []
    for cfg in configs:
        for steps in cfg.branches or (None,):
            out.append(cfg if steps is None else _branch(cfg, steps))
    return out


def _branch(cfg: RunConfig, steps: int) -> RunConfig:
    trainer = cfg.trainer.model_copy(update={"steps": steps})
    other_lengths = [f"{key}=null" for key in LENGTHS if any(one.startswith(f"{key}=") for one in cfg.overrides)]
    kept = cfg.overrides
    if cfg.lr_from is not None:  # the rule gave the rate of the longest branch, and all have that of their trunk
        kept = [*(one for one in kept if not one.lstrip("+").startswith("optim.lr")), f"optim.lr={cfg.optim.lr:g}"]
    overrides = [*kept, *other_lengths, f"trainer.steps={steps}"]
    return cfg.model_copy(update={"trainer": trainer, "overrides": overrides})


def branch_name(arm: str, cfg: RunConfig) -> str:
    """Return the name of an arm at one of its budgets: ``gelu, 200k tokens``."""
    n = cfg.tokens
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if n >= size:
            return f"{arm}, {n / size:.4g}{letter} tokens"
    return f"{arm}, {n} tokens"


def decay_start(cfg: RunConfig, steps: int | None = None) -> int:
    """Return the step (from 0) at which the decay of a run of `steps` begins, as optim.lr_factor computes it."""
    steps = cfg.trainer.steps if steps is None else steps
    return max(cfg.schedule.warmup_steps or 0, steps - round((cfg.schedule.decay_fraction or 0.0) * steps))


def trunk_id(cfg: RunConfig, data: TokenData) -> str | None:
    """Return the hash that runs of a warmup-stable-decay schedule share across budgets; None for other schedules."""
    if cfg.schedule.kind != "wsd":
        return None
    shared = science(cfg, data)
    shared["trainer"] = {key: value for key, value in shared["trainer"].items() if key != "steps"}
    decay = ("final_fraction", "decay_fraction")
    shared["schedule"] = {key: value for key, value in shared["schedule"].items() if key not in decay}
    text = json.dumps(shared, sort_keys=True, allow_nan=False)
    return hashlib.sha256(f"trunk|{text}".encode()).hexdigest()[:12]


class Trunk:
    """The shared checkpoints of runs that differ in budget. A run without a checkpoint of its own starts from them.

    `points`: steps at which to leave one; `end`: the last step that this run shares; `left_at`: the step at which this
    run started from the trunk, or None.
    """

    def __init__(self, folder: Path, points: frozenset[int], end: int, directory: RunDirectory) -> None:
        self.folder, self.points, self.end, self.directory = folder, points, end, directory
        self.left_at: int | None = None

    @classmethod
    def of(cls, cfg: RunConfig, data: TokenData, directory: RunDirectory) -> Trunk | None:
        """Return the trunk of a run with branches, or None."""
        identity = trunk_id(cfg, data) if cfg.branches else None
        if identity is None:
            return None
        end = decay_start(cfg)
        folder = trunk_folder(cfg.results_dir, identity)
        starts = {decay_start(cfg, steps) for steps in cfg.branches or ()}
        points = frozenset(s for s in starts if s <= end)
        why, readable = _closed(folder)
        if why:
            log.warning("the runs of this trunk train each step of their own where they cannot share it: %s", why)
            points = frozenset()
        return cls(folder, points, end, directory) if readable else None

    def keep_history(self, step: int) -> None:
        """Write the records of this run so far next to the checkpoint of `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.directory.history_path.exists():
            atomic_write(self.history(step), self.directory.history_path.read_bytes())

    def adopt_history(self) -> None:
        """Copy the trunk's records into a run that started from the trunk."""
        if self.left_at is not None and self.history(self.left_at).exists():
            self.directory.create()
            atomic_write(self.directory.history_path, self.history(self.left_at).read_bytes())

    def history(self, step: int) -> Path:
        """Return the path of the records up to a checkpoint of the trunk."""
        return self.folder / f"history-{step:09d}.jsonl"


def _closed(folder: Path) -> tuple[str, bool]:
    """Return why checkpoints cannot be written to a trunk's folder, or ""; and whether those there can be read."""
    place = folder if access.there(folder) else folder.parent
    try:
        if access.there(place) is False:
            return "", True
        access.listed(place)
        with tempfile.TemporaryFile(dir=place, prefix=".probe."):
            return access.why_closed(place), True
    except OSError as error:
        why = access.why_closed(place)
        return why or access.reason(error), not why


def trunk_folder(results_dir: str | Path, identity: str) -> Path:
    """Return the folder of a trunk in a results directory."""
    return Path(results_dir) / FOLDER / identity
