"""Tell what a run still lacks. This module alone decides whether a run is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from lmablate.runs.evaluation_files import has_evaluation
from lmablate.schema.diagnostics import covers, requested_diagnostics

if TYPE_CHECKING:
    from lmablate.runs.run_directory import RunDirectory
    from lmablate.schema.result import RunResult
    from lmablate.schema.run_config import RunConfig

Part = Literal["result", "diagnostics", "evaluation"]
Stamp = tuple[int, int]


class RunState(NamedTuple):
    """The parts that a run has and lacks of those its configuration requests. `stamp`: time (ns) and size of result.json."""

    result: RunResult | None
    lacks: tuple[Part, ...]
    stamp: Stamp | None

    @property
    def done(self) -> bool:
        """Return whether the run lacks nothing."""
        return not self.lacks


def state_of(cfg: RunConfig, directory: RunDirectory, known: RunState | None = None) -> RunState:
    """Return the state of a run from its folder. An unchanged result.json is taken from `known` and not read again.
    Diagnostics are in history.jsonl, which a restored archive lacks. A diverged run has no evaluation."""
    stamp = _stamp(directory)
    if stamp is None:
        return RunState(None, ("result",), None)
    same = known is not None and known.stamp == stamp
    result = known.result if known is not None and same else directory.read_result()
    if result is None:
        return RunState(None, ("result",), stamp)
    lacks: list[Part] = []
    requested = requested_diagnostics(cfg)
    if requested is not None and not (covers(result.diagnostics, requested) and directory.history_path.exists()):
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
