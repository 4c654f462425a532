"""What a run still lacks: the one answer to whether it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.schema.diagnostics import asked_of, covers

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.run_config import RunConfig


def is_complete(directory: RunDirectory, cfg: RunConfig) -> bool:
    """Is the run done, with the diagnostics that `cfg` asks for?

    They stand in history.jsonl, which a restored archive does not bring along.
    """
    row = directory.read_result()
    asked = asked_of(cfg)
    if row is None or asked is None:
        return row is not None
    return covers(row.get("diagnostics"), asked) and directory.history_path.exists()
