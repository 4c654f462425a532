"""The runs of a study that are known now, and those that depend on the results of others."""

from __future__ import annotations

from lmablate.data import TokenData
from lmablate.launcher.jobs import Job, prepare_jobs
from lmablate.sweeper.study import Study, seed_label


def known_and_later(study: Study) -> tuple[dict[str, Job], list[Job], dict[str, TokenData]]:
    """Return the jobs with a known run id, the jobs that depend on their results, and the data of both by run id."""
    study.check()
    jobs: dict[str, Job] = {}
    data: dict[str, TokenData] = {}
    for trials in study.stages():
        batch, stores = study.prepare(trials)
        jobs |= {job.run_id: job for job in batch}
        data |= stores
        if not all(job.done for job in batch):
            break
    later, stores = prepare_jobs(study.later())
    for job in later:
        job.label = f"{job.cfg.arm} · {seed_label(job.cfg.init_seed, job.cfg.data_seed)}"
    return jobs, later, data | stores
