"""What a run still lacks: the one answer to whether it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from lmablate.runs.evaluation_files import has_evaluation
from lmablate.schema.diagnostics import asked_of, covers

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

Part = Literal["result", "diagnostics", "evaluation"]
Stamp = tuple[int, int]


class RunState(NamedTuple):
    """What a run has and what it lacks of what its configuration asks for; `stamp` is time and size of its result.json."""

    result: RunResult | None
    lacks: tuple[Part, ...]
    stamp: Stamp | None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.lacks


def state_of(cfg: RunConfig, directory: RunDirectory, known: RunState | None = None) -> RunState:
    """Look at the folder of a run. A result.json that is as it was when `known` was made is not read again.

    Diagnostics stand in history.jsonl, which a restored archive does not bring along. A diverged run has no evaluation.
    """
    stamp = _stamp(directory)
    if stamp is None:
        return RunState(None, ("result",), None)
    same = known is not None and known.stamp == stamp
    result = known.result if known is not None and same else directory.read_result()
    if result is None:
        return RunState(None, ("result",), stamp)
    lacks: list[Part] = []
    asked = asked_of(cfg)
    if asked is not None and not (covers(result.diagnostics, asked) and directory.history_path.exists()):
        lacks.append("diagnostics")
    if result.status == "completed" and not has_evaluation(cfg, directory.path, result):
        lacks.append("evaluation")
    return RunState(result, tuple(lacks), stamp)


def _stamp(directory: RunDirectory) -> Stamp | None:
    try:
        found = directory.result_path.stat()
    except OSError:  # none, or none that may be looked at
        return None
    return found.st_mtime_ns, found.st_size
