"""Group jobs that share a process: branches of one trunk, and gang candidates spread evenly over the slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.launcher.jobs import Job

MOST = 64  # members of one process, which limits the cost of a crash


def group_jobs(jobs: Sequence[Job], data: Mapping[str, TokenData], slots: int) -> list[list[Job]]:
    """Return jobs grouped by graph, in order of first appearance, with each graph's jobs cut into one group a slot."""
    from lmablate.training.gang import graph_key

    graphs: dict[str, list[Job]] = {}
    for job in jobs:
        graphs.setdefault(graph_key(job.cfg, data[job.run_id]) or job.run_id, []).append(job)
    parts: list[list[Job]] = []
    for members in graphs.values():
        size = min(MOST, max(1, -(-len(members) // max(1, slots))))
        parts += [members[i : i + size] for i in range(0, len(members), size)]
    return parts


def split_trunks(jobs: Sequence[Job]) -> tuple[list[list[Job]], list[Job]]:
    """Return the branches of each trunk, longest first, and the jobs without a trunk. The longest branch leaves the
    checkpoints that the others start from."""
    trunks: dict[str, list[Job]] = {}
    for job in jobs:
        if job.trunk is not None:
            trunks.setdefault(job.trunk, []).append(job)
    ordered = [sorted(members, key=lambda job: -job.cfg.trainer.steps) for members in trunks.values()]
    return ordered, [job for job in jobs if job.trunk is None]
