"""A study in stages: tune the learning rate of each arm on its own seeds, then run the evaluation seeds at the best one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lmablate.config.budget_matching import reference_overrides
from lmablate.config.composition import counted_in
from lmablate.core.errors import ConfigError
from lmablate.data import TokenData
from lmablate.launcher.jobs import Job, prepare_jobs
from lmablate.results.studies import save_study
from lmablate.runs.wsd_branches import branch_name, expand
from lmablate.schema.run_config import RunConfig
from lmablate.sweeper import record
from lmablate.sweeper.looks import Look, StoppingRule, never
from lmablate.sweeper.settings import (
    SeedPair,
    StudySettings,
    TuneSettings,
    combinations,
    expand_arms,
    generation,
    seed_pairs,
)
from lmablate.sweeper.tuning import Cell, Tuning

if TYPE_CHECKING:
    from lmablate.config.resolve import Counted

log = logging.getLogger(__name__)
TUNE, EVALUATE, SHARED = "tune", "evaluate", "evaluate_shared"
# Composes the run of an arm's overrides; a second argument tells what trainer.tokens_per_param counts (config/resolve.py).
Compose = Callable[[Sequence[str], "Counted | None"], "RunConfig"]
# Trains the missing runs of some jobs, given the data of each by run id; returns an exit code.
Launch = Callable[[Sequence[Job], Mapping[str, "TokenData"]], int]


@dataclass(frozen=True)
class Trial:
    """One run of a study: an arm, with overrides of tune.cross (`settings`), at a learning rate on one pair of seeds."""

    arm: str
    settings: tuple[str, ...]
    stage: str
    lr: float
    seeds: SeedPair


class Study:
    """Arms x seeds x learning rates. `compose` returns the configuration of an arm's overrides."""

    def __init__(
        self, name: str, settings: StudySettings, tune: TuneSettings, compose: Compose, rule: StoppingRule = never
    ) -> None:
        self.name, self.settings, self.tune, self.rule = name, settings, tune, rule
        self._compose = compose
        self.arms = {arm.name: arm.overrides for arm in expand_arms(settings)}
        self.pairs = seed_pairs(settings.seeds)
        self._configs: dict[tuple[str, tuple[str, ...]], RunConfig] = {}
        self._counts: dict[tuple[str, tuple[str, ...]], Counted] = {}
        self._job_of: dict[Trial, Job] = {}
        self.uses: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.losses: dict[Trial, float | None] = {}
        self.missing: set[Trial] = set()
        self.evaluated: set[tuple[str, str, SeedPair]] = set()
        self.stopped: dict[str, str] = {}
        self.orphans: dict[str, str] = {}
        self.tuning: Tuning | None = None
        self.stage = TUNE if tune.mode != "none" else EVALUATE

    @property
    def bases(self) -> list[RunConfig]:
        """Return the composed configurations, at least one of each arm after `check`."""
        return list(self._configs.values())

    @property
    def results_dir(self) -> str:
        """Return the folder of the runs."""
        return next(iter(self._configs.values())).results_dir

    @property
    def planned(self) -> tuple[int, ...]:
        """Return the numbers of pairs at which the study is examined, the last one its end."""
        looks = self.settings.looks or []
        return tuple(sorted({*looks, len(self.pairs)}))

    @property
    def views(self) -> list[str]:
        """Return the evaluation stages: at each arm's own rate, at the shared one, or both."""
        return [EVALUATE, SHARED] if self.tune.mode == "both" else [EVALUATE]

    def check(self) -> None:
        """Compose every arm of every stage. Raises ConfigError."""
        for arm in self.arms:
            for settings in combinations(self.tune) if self.tune.mode != "none" else [()]:
                self._base(arm, settings)
        if self.tune.mode != "none":
            self.tuning = Tuning(self.tune, {arm: self.own_lr(arm) for arm in self.arms})

    def _settings(self, arm: str) -> tuple[str, ...]:
        return combinations(self.tune)[0] if self.tune.mode != "none" else ()

    def own_lr(self, arm: str) -> float:
        """Return the learning rate that the arm's own overrides give it."""
        return self._base(arm, self._settings(arm)).optim.lr

    def _base(self, arm: str, settings: tuple[str, ...]) -> RunConfig:
        key = (arm, settings)
        if key not in self._configs:
            try:
                self._configs[key] = self._compose([*self.arms[arm], *settings], self._counted(arm, settings))
            except ConfigError as error:
                raise ConfigError(f"arm {arm} of sweeps={self.name}: {error}") from error
        return self._configs[key]

    def baseline_of(self, arm: str) -> str:
        """Return the arm that `arm` is compared with."""
        return next(iter(self.arms))

    def _counted(self, arm: str, settings: tuple[str, ...]) -> Counted:
        """Return what trainer.tokens_per_param counts, for all arms alike: the baseline without its axes, as in a grid.

        So an arm that two studies share is one run in both. A baseline that is no run without its axes counts as it is."""
        key = (self.baseline_of(arm), settings)
        if key not in self._counts:
            baseline = [*self.arms[key[0]], *settings]
            sizes = reference_overrides(baseline, None)
            self._counts[key] = counted_in(*(partial(self._compose, own, None) for own in (sizes, baseline)))
        return self._counts[key]

    def configs(self, trial: Trial) -> list[RunConfig]:
        """Return the runs of a trial: one, or in the evaluation one for each branch of a WSD trunk."""
        cfg = self._base(trial.arm, trial.settings)
        overrides = [f"optim.lr={trial.lr:g}", f"init_seed={trial.seeds.init}", f"data_seed={trial.seeds.data}"]
        if cfg.counted_params is not None:  # other parameters than the run's decided the steps
            overrides += ["trainer.tokens_per_param=null", f"trainer.steps={cfg.trainer.steps}"]
        moved: dict[str, Any] = {
            "optim": cfg.optim.model_copy(update={"lr": trial.lr}),
            "lr_from": cfg.lr_from if trial.lr == cfg.optim.lr else None,
            "init_seed": trial.seeds.init,
            "data_seed": trial.seeds.data,
            "overrides": [*cfg.overrides, *overrides],
            "sweep": self.name,
            "arm": trial.arm,
            "stage": trial.stage,
        }
        if (parent := self._parent(trial)) is not None and self.losses.get(parent) is not None:
            run_id = self._job_of[parent].run_id
            moved["trainer"] = cfg.trainer.model_copy(update={"init_from": run_id})
            moved["overrides"] = [*moved["overrides"], f"trainer.init_from='{run_id}'"]
        whole = cfg.model_copy(update=moved)
        if trial.stage == TUNE or cfg.branches is None:
            return [whole.model_copy(update={"branches": None})]
        return [one.model_copy(update={"arm": branch_name(trial.arm, one)}) for one in expand([whole])]

    def _parent(self, trial: Trial) -> Trial | None:
        """Return the trial whose weights `trial` starts from, or None."""
        arm = (self.settings.starts or {}).get(trial.arm)
        return None if arm is None else self._evaluation(arm, trial.seeds)[0]

    def prepare(self, trials: Sequence[Trial]) -> tuple[list[Job], dict[str, TokenData]]:
        """Return the jobs of `trials`, and the data of each by run id. Raises ConfigError before anything is trained."""
        composed = [(trial, self.configs(trial)) for trial in trials]
        jobs, data = prepare_jobs([cfg for _, configs in composed for cfg in configs])
        owners: dict[str, str] = {}
        by_overrides = {tuple(own): job for job in jobs for own in (job.cfg.overrides, *job.other_overrides)}
        for trial, configs in composed:
            for cfg in configs:
                assert cfg.arm is not None
                job = by_overrides[tuple(cfg.overrides)]
                if (other := owners.setdefault(job.run_id, cfg.arm)) != cfg.arm:
                    raise ConfigError(
                        f"sweeps={self.name}: the arms {other} and {cfg.arm} are the same run, so they cannot be compared: "
                        "what sets them apart has no effect, or is set for all on the command line"
                    )
                stage = " · tune" if trial.stage == TUNE else ""
                job.label = f"{cfg.arm} · lr {trial.lr:g} · {seed_label(*trial.seeds)}{stage}"
                use = {**record.use_of(job, cfg, trial.settings), **self.labels(trial, cfg, configs[-1])}
                self.uses[(job.run_id, cfg.arm, trial.stage)] = use
            job = self._job_of[trial] = by_overrides[tuple(configs[-1].overrides)]  # of branches, the longest counts
            job.starts_others |= trial.stage == EVALUATE and trial.arm in (self.settings.starts or {}).values()
        self.collect(trials)
        return jobs, data

    def labels(self, trial: Trial, cfg: RunConfig, longest: RunConfig) -> dict[str, Any]:
        """Return what else the record says of a use of a run; `longest` is the last branch of the trial."""
        return {}

    def arm_record(self, name: str) -> dict[str, Any]:
        """Return the record of an arm's learning rate."""
        return self.tuning.arm(name) if self.tuning is not None else {"lr": self.own_lr(name)}

    def more_record(self) -> dict[str, Any]:
        """Return what else the study's file says."""
        return {}

    def collect(self, trials: Sequence[Trial]) -> None:
        """Record the results of `trials`."""
        for trial in trials:
            job = self._job_of[trial]
            row = job.directory.read_result()
            self.missing.discard(trial)
            if row is None or row.status == "failed" or job.lacks_weights:
                self.missing.add(trial)
            else:
                self.losses[trial] = row.val_loss if row.status == "completed" else None

    def stages(self) -> Iterator[list[Trial]]:
        """Yield batches of trials. Call `collect` on each before the next."""
        yield from self.tuning_stages()
        self.stage = EVALUATE
        planned = self.planned
        for index, n in enumerate(planned):
            trials = [t for pair in self.pairs[:n] for arm in self._active(pair) for t in self._evaluation(arm, pair)]
            yield from self._by_generation(trials)
            if index + 1 < len(planned):
                self._look(index, planned, n)

    def tuning_stages(self) -> Iterator[list[Trial]]:
        """Yield the batches that choose the learning rates."""
        if self.tuning is not None:
            seeds = [SeedPair(seed, seed) for seed in self.tune.seeds or ()]
            while True:
                trials = [Trial(c.arm, c.settings, TUNE, lr, pair) for c, lr in self.tuning.points() for pair in seeds]
                yield trials
                for trial in trials:
                    if trial in self.losses:
                        self.tuning.record(
                            Cell(trial.arm, trial.settings), trial.lr, trial.seeds.init, self.losses[trial]
                        )
                if not self.tuning.extend():
                    break

    def _by_generation(self, trials: Sequence[Trial]) -> Iterator[list[Trial]]:
        """Yield the trials that start from nothing, then those that start from these, and so on.

        Trials whose parent has no weights are left out."""
        starts = self.settings.starts or {}
        generations = [generation(starts, trial.arm) for trial in trials]
        for number in sorted(set(generations)):
            own = [trial for trial, own_generation in zip(trials, generations, strict=True) if own_generation == number]
            orphans = {trial for trial in own if number and self.losses.get(self._parent(trial)) is None}  # type: ignore[arg-type]
            self.missing |= orphans
            for arm in {trial.arm for trial in orphans}:
                self.orphans[arm] = f"the runs of {starts[arm]} that it starts from are not all completed"
            self.evaluated |= {(trial.arm, trial.stage, trial.seeds) for trial in own}
            yield [trial for trial in own if trial not in orphans]

    def _active(self, pair: SeedPair) -> list[str]:
        """Return the arms that run on a pair of seeds: undecided ones, and the baseline if there are any."""
        baseline = next(iter(self.arms))
        arms = [a for a in self.arms if a not in self.stopped or (a, EVALUATE, pair) in self.evaluated]
        return arms if set(arms) - {baseline} or len(self.arms) == 1 else []

    def _evaluation(self, arm: str, pair: SeedPair) -> list[Trial]:
        """Return the trials of an arm at its learning rates on one pair of seeds."""
        if self.tuning is None:
            return [Trial(arm, (), EVALUATE, self.own_lr(arm), pair)]
        chosen = [self.tuning.choice(arm, shared=stage == SHARED or self.tune.mode == "shared") for stage in self.views]
        return [Trial(arm, s, stage, lr, pair) for stage, (s, lr) in zip(self.views, chosen, strict=True)]

    def _look(self, index: int, planned: tuple[int, ...], n: int) -> None:
        """Stop the arms that the rule decides after `n` pairs."""
        seen = {(t.arm, t.seeds): loss for t, loss in self.losses.items() if t.stage == EVALUATE}
        losses = {arm: [seen.get((arm, pair)) for pair in self.pairs[:n]] for arm in self.arms}
        going = {arm: values for arm, values in losses.items() if arm not in self.stopped}
        for arm, why in self.rule(Look(index, planned, next(iter(self.arms)), going)).items():
            self.stopped[arm] = f"stopped after {n} of {len(self.pairs)} pairs: {why}"
            log.info("%s: %s", arm, self.stopped[arm])

    def later(self) -> list[RunConfig]:
        """Return evaluation runs that are not known yet: at a learning rate still to be chosen, or after a look."""
        left = [
            Trial(arm, self._settings(arm), stage, self.own_lr(arm), pair)
            for pair in self.pairs
            for arm in self.arms
            for stage in self.views
            if arm not in self.stopped and (arm, stage, pair) not in self.evaluated
        ]
        return [cfg for trial in left for cfg in self.configs(trial)]

    def run(self, launch: Launch) -> int:
        """Train the missing runs, stage by stage. Return the exit code. Calling it again continues."""
        self.check()
        worst = 0
        for trials in self.stages():
            jobs, data = self.prepare(trials)
            waiting = [job for job in jobs if not job.done]
            if waiting or self.stage == EVALUATE:
                self.save()  # what was decided stands in the file before it is trained on
                log.info("%s of sweeps=%s: %d runs, %d to train", self.stage, self.name, len(jobs), len(waiting))
                code = launch(jobs if self.stage == EVALUATE else waiting, data)
                self.collect(trials)
                self.save()
                if code >= 128:
                    return code
                worst = max(worst, code)
        self.stage = "done" if not self.missing else EVALUATE
        self.save()
        for line in self.notes():
            log.info("%s", line)
        return worst

    def decisions(self) -> list[str]:
        """Return the chosen learning rates, and the arms that were stopped early."""
        return record.decisions(self)

    def notes(self) -> list[str]:
        """Return the decisions and the missing runs, one per line."""
        return record.notes(self)

    def save(self) -> None:
        """Write RESULTS_DIR/studies/<sweep>.json."""
        save_study(self.results_dir, self.name, record.content(self))


def seed_label(init: int, data: int) -> str:
    """Return a pair of seeds as text: ``seed 3``, ``init 3 data 0``."""
    return f"seed {init}" if init == data else f"init {init} data {data}"
