"""The stored record of a study, and the notes for its reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmablate.launcher.jobs import Job
    from lmablate.schema.run_config import RunConfig
    from lmablate.sweeper.study import Study


def decisions(study: Study) -> list[str]:
    """Return the chosen learning rates, and the arms that were stopped early, one per line."""
    lines = study.tuning.notes() if study.tuning is not None else []
    if len(study.pairs) == 1:
        lines.append("one evaluation seed: a difference cannot be told from noise; sweep.seeds.values=4 or more can")
    return lines + [f"{arm}: {why}" for arm, why in study.stopped.items()]


def notes(study: Study) -> list[str]:
    """Return the decisions and the missing runs, one per line."""
    counts = Counter(trial.arm for trial in study.missing)
    return study.decisions() + [
        f"{arm}: {n} run{'s' * (n > 1)} without a result; "
        + study.orphans.get(arm, "the same command trains what is missing")
        for arm, n in sorted(counts.items())
    ]


def use_of(job: Job, cfg: RunConfig, settings: Sequence[str]) -> dict[str, Any]:
    """Return the record of one use of a run: its arm and stage, and the `settings` that were chosen for it."""
    use = {"run_id": job.run_id, "arm": cfg.arm, "stage": cfg.stage, "lr": cfg.optim.lr, "settings": list(settings)}
    return {**use, "init_seed": cfg.init_seed, "data_seed": cfg.data_seed}


def content(study: Study) -> dict[str, Any]:
    """Return the content of ``RESULTS_DIR/studies/<sweep>.json``."""
    settings, tuning = study.settings, study.tuning
    arms = {name: {"overrides": list(overrides), **study.arm_record(name)} for name, overrides in study.arms.items()}
    return {
        "schema_version": 1,
        "sweep": study.name,
        "question": settings.question,
        "claims": settings.claims or [],
        "stage": study.stage,
        "baseline": next(iter(study.arms)),
        "arms": arms,
        "tune": study.tune.model_dump(exclude_none=True),
        "shared": tuning.shared() if tuning is not None else None,
        "seeds": {"mode": settings.seeds.mode, "pairs": [list(pair) for pair in study.pairs]},
        "looks": {
            "planned": list(study.planned) if settings.looks else None,
            "rule": settings.look_rule or "obrien_fleming" if settings.looks else None,
            "arms": len(study.arms) - 1,
            "stopped": study.stopped,
        },
        "notes": notes(study),
        "runs": list(study.uses.values()),
        **study.more_record(),
    }
