"""What can go wrong in a run that is not its configuration's fault, in words, and what may be done about it."""

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
HELD = 75  # exit code of a process whose run another one trains (EX_TEMPFAIL of sysexits.h)
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
    """What status.json says of a run that ended in `error`."""
    if is_out_of_memory(error) and cfg is not None:
        size = allocation(error)
        said = f"out of memory: {tried_words(cfg)}" + (f", where {size:,} bytes more were asked for" if size else "")
        less = smaller(cfg, asked=True)
        if less is not None:
            said += f"; runtime.on_oom=halve_microbatch goes on with {less.runtime.microbatch_size} at a time"
        return {"state": "failed", "error": said, "kind": MEMORY, "tried": tried(cfg) | {"bytes": size}}
    if isinstance(error, OSError) and error.errno in _DISK:
        return {"state": "failed", "error": words_for(error), "kind": DISK}
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"state": "failed", "error": text, "kind": CONFIG if isinstance(error, ConfigError) else None}


def words_for(error: OSError) -> str:
    """A disk that is full, read-only or gone, and what helps."""
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
    """On a GPU or on the CPU, where torch says so in words alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def allocation(error: BaseException) -> int | None:
    """Bytes of the allocation that failed, as torch tells them."""
    found = _SIZES.search(str(error))
    return int(float(found[1]) * 2 ** _UNITS[found[2].lower()]) if found else None


def tried(cfg: RunConfig) -> dict[str, Any]:
    """The size of one pass."""
    return {"microbatch_size": pass_size(cfg), "context_length": cfg.model.context_length}


def tried_words(cfg: RunConfig) -> str:
    return f"{pass_size(cfg)} sequences of {cfg.model.context_length} tokens in one pass"


def pass_size(cfg: RunConfig) -> int:
    """Sequences in one pass."""
    return min(cfg.runtime.microbatch_size or cfg.trainer.batch_size, cfg.trainer.batch_size)


def smaller(cfg: RunConfig, *, asked: bool = False) -> RunConfig | None:
    """The same run with half the sequences in a pass, and so with more accumulation; None where that is not wanted
    (`asked`: as if it were), or a pass has one sequence."""
    size = pass_size(cfg) // 2
    if size < 1 or not (asked or cfg.runtime.on_oom == "halve_microbatch"):
        return None
    return cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"microbatch_size": size})})


def oom_kills() -> int | None:
    """How often the kernel has killed a process for lack of memory, on this machine since it booted."""
    try:
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None


class Attempts:
    """The attempts of one process at a run: smaller passes where memory was lacking, and steps repeated after a NaN.

    `runtime.nan_restarts=n`: a loss or gradient that is not finite sends the run back to its last checkpoint, n times at most. The
    same steps then see the same tokens and draws, so a loss that diverges by its own does so again, at the same step, and is
    recorded as diverged, the more certainly so. One that does not was a fault of hardware or driver; the row is then what
    an undisturbed machine gives, and says how often it was repeated. No step and no batch is ever skipped.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self.nan_at: list[int] = []
        self.too_large: list[int] = []

    def halve(self, error: BaseException) -> bool:
        """Is the run to go on with smaller passes after `error`?"""
        less = smaller(self.cfg) if is_out_of_memory(error) else None
        if less is None:
            return False
        self.too_large.append(pass_size(self.cfg))
        log.warning("out of memory with %s; going on with %s", tried_words(self.cfg), tried_words(less))
        self.cfg = less
        return True

    def repeat(self, trainer: Trainer) -> bool:
        """Are the steps since the last checkpoint to be repeated, after the end of `trainer`'s records?"""
        at = trainer.progress.diverged_at_step
        if at is None or not not_finite(trainer):
            return False
        self.nan_at.append(at)
        if len(self.nan_at) > (self.cfg.runtime.nan_restarts or 0):
            return False
        log.warning("not finite at step %d: the steps since the last checkpoint are repeated", at)
        return True

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        """What the row's provenance says of them; nothing where there was no fault."""
        said: dict[str, Any] = {}
        if self.too_large:
            said["out_of_memory_with"] = self.too_large
        if self.nan_at and self.cfg.runtime.nan_restarts:
            ended = trainer.progress.diverged_at_step
            came_again = ended is not None and ended == self.nan_at[0]
            said |= {"not_finite_at": self.nan_at, "not_finite_came_again": came_again}
            if not came_again:
                log.warning(
                    "what was not finite at step %d did not come again when the steps were repeated: "
                    "suspect this machine, and not the model",
                    self.nan_at[0],
                )
        return {"faults": said} if said else {}


def not_finite(trainer: Trainer) -> bool:
    """Did a run diverge by a number that is not finite, rather than by a loss above its start?"""
    detector = trainer.detector
    return detector is None or detector.above < detector.patience


def free_memory(device: str) -> None:
    """Let go of what a failed attempt held."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
