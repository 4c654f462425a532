"""Describe and handle failures that are not the fault of the configuration: memory, disk, non-finite numbers."""

from __future__ import annotations

import errno
import gc
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core import access
from lmablate.core.errors import ConfigError

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig
    from lmablate.training.trainer import Trainer

log = logging.getLogger(__name__)
HELD = 75  # exit code of a process whose run is locked by another one (EX_TEMPFAIL of sysexits.h)
MEMORY, CONFIG, DISK = "out_of_memory", "config", "disk"  # kinds of failure
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_SIZES = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}
_DISK = {
    *access.DENIED,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EISDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EIO,
    errno.ESTALE,
}


def failure(error: BaseException, cfg: RunConfig | None = None) -> dict[str, Any]:
    """Return the content of status.json for a run that ended in `error`."""
    if is_out_of_memory(error) and cfg is not None:
        size = allocation(error)
        message = f"out of memory: {pass_size_text(cfg)}" + (
            f", where {size:,} bytes more were asked for" if size else ""
        )
        less = smaller(cfg, always=True)
        if less is not None:
            message += f"; runtime.on_oom=halve_microbatch goes on with {less.runtime.microbatch_size} at a time"
        return {"state": "failed", "error": message, "kind": MEMORY, "tried": tried(cfg) | {"bytes": size}}
    if isinstance(error, OSError) and error.errno in _DISK:
        return {"state": "failed", "error": disk_message(error), "kind": DISK}
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"state": "failed", "error": text, "kind": CONFIG if isinstance(error, ConfigError) else None}


def disk_message(error: OSError) -> str:
    """Return the message for a disk that is full, read-only or gone, with a remedy."""
    if error.errno in access.DENIED:
        return f"{access.reason(error)}; or give another results_dir"
    what = (error.strerror or str(error)).lower()
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what}{where}: free some room, and the same command goes on from the last checkpoint"
    return (
        f"{what}{where}: once the folder is there and can be written, the same command goes on from the last checkpoint"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means lack of memory, on a GPU or on a CPU, where torch says so only in its message."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def allocation(error: BaseException) -> int | None:
    """Return the bytes of the failed allocation as torch reports them, or None."""
    found = _SIZES.search(str(error))
    return int(float(found[1]) * 2 ** _UNITS[found[2].lower()]) if found else None


def tried(cfg: RunConfig) -> dict[str, Any]:
    """Return the size of one forward pass as columns."""
    return {"microbatch_size": pass_size(cfg), "context_length": cfg.model.context_length}


def pass_size_text(cfg: RunConfig) -> str:
    """Return the size of one forward pass as text."""
    return f"{pass_size(cfg)} sequences of {cfg.model.context_length} tokens in one pass"


def pass_size(cfg: RunConfig) -> int:
    """Return the number of sequences in one forward pass."""
    return min(cfg.runtime.microbatch_size or cfg.trainer.batch_size, cfg.trainer.batch_size)


def smaller(cfg: RunConfig, *, always: bool = False) -> RunConfig | None:
    """Return the same run with half the sequences a pass, and so more accumulation. Returns None for a pass of one
    sequence, or unless runtime.on_oom allows it (`always`: ignore that setting)."""
    size = pass_size(cfg) // 2
    if size < 1 or not (always or cfg.runtime.on_oom == "halve_microbatch"):
        return None
    return cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": size})})


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory since boot, or None where it does not tell."""
    try:
        fields = Path("/proc/vmstat").read_text().split()
        return int(fields[fields.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None


class Attempts:
    """The attempts of one process at a run: smaller passes after lack of memory, and repeated steps after a NaN.

    `runtime.nan_restarts=n`: a non-finite loss or gradient sends the run back to its last checkpoint, n times at most.
    The same steps then see the same tokens and draws. A loss that diverges by itself does so again at the same step,
    and is recorded as diverged with more certainty. One that does not was a fault of hardware or driver; the row is
    then that of an undisturbed machine, and records the repetitions. No step and no batch is ever skipped.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self.nan_at: list[int] = []
        self.too_large: list[int] = []

    def halve(self, error: BaseException) -> bool:
        """Return whether the run is to go on with smaller passes after `error`, and halve them."""
        less = smaller(self.cfg) if is_out_of_memory(error) else None
        if less is None:
            return False
        self.too_large.append(pass_size(self.cfg))
        log.warning("out of memory with %s; going on with %s", pass_size_text(self.cfg), pass_size_text(less))
        self.cfg = less
        return True

    def repeat(self, trainer: Trainer) -> bool:
        """Return whether the steps since the last checkpoint are to be repeated, after the records of `trainer` have ended."""
        at = trainer.progress.diverged_at_step
        if at is None or not not_finite(trainer):
            return False
        self.nan_at.append(at)
        if len(self.nan_at) > (self.cfg.runtime.nan_restarts or 0):
            return False
        log.warning("not finite at step %d: the steps since the last checkpoint are repeated", at)
        return True

    def faults(self, trainer: Trainer) -> dict[str, Any]:
        """Return the faults for the row's provenance; empty without faults."""
        faults: dict[str, Any] = {}
        if self.too_large:
            faults["out_of_memory_with"] = self.too_large
        if self.nan_at and self.cfg.runtime.nan_restarts:
            ended = trainer.progress.diverged_at_step
            came_again = ended is not None and ended == self.nan_at[0]
            faults |= {"not_finite_at": self.nan_at, "not_finite_came_again": came_again}
            if not came_again:
                log.warning(
                    "what was not finite at step %d did not come again when the steps were repeated: "
                    "suspect this machine, and not the model",
                    self.nan_at[0],
                )
        return {"faults": faults} if faults else {}


def not_finite(trainer: Trainer) -> bool:
    """Return whether a run diverged by a non-finite number rather than by a loss above its initial one."""
    detector = trainer.detector
    return detector is None or detector.above < detector.patience


def free_memory(device: str) -> None:
    """Release the memory of a failed attempt."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
