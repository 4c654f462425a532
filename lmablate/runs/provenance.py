"""Where, when and with what a run was made."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lmablate.core.paths import ROOT

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


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
