"""Collect the provenance of a run: time, machine, code and libraries."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lmablate.core.paths import ROOT

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def device_name(device: str) -> str:
    """Return ``cpu``, or the name of the GPU."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def peak_memory_bytes(device: str) -> int:
    """Return the peak memory of this process in bytes: resident on CPU, allocated by torch on a GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance(cfg: RunConfig, started: datetime) -> dict[str, Any]:
    """Return the provenance columns of a run that started at `started` and ends now."""
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
    """Return the commit of the code, and whether files were changed; (None, None) outside a checkout."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    if not (ROOT / ".git").exists():
        return None, None
    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
