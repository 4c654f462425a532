"""Search a space with optuna, with finished runs as the only memory besides the order of the trials.

Samplers are deterministic given their seed, the order of the trials and their values. A stopped search therefore replays
all trials from finished runs and reaches the same next trial. Where that is impossible (another sampler, space or library,
or a failed run that has since finished), the earlier settings are enqueued instead.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import Job, prepare_jobs
from lmablate.launcher.scheduler import slot_count
from lmablate.results.studies import load_studies, save_study
from lmablate.schema.training_config import LENGTHS
from lmablate.sweeper.optuna_record import content, identity, within
from lmablate.sweeper.optuna_space import SearchSettings, dimensions
from lmablate.sweeper.optuna_table import report
from lmablate.sweeper.optuna_trials import SearchTrial, metric_of, open_study, optuna_library
from lmablate.sweeper.record import use_of
from lmablate.sweeper.study import Launch

if TYPE_CHECKING:
    import optuna

    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
SEARCH = "search"
Compose = Callable[[Sequence[str]], "RunConfig"]
SAME_TOKENS = 0.02  # steps are whole


class Search:
    """A search over a space. `compose` returns the configuration of overrides; `fixed` overrides hold for every trial."""

    def __init__(
        self, name: str, settings: SearchSettings, fixed: tuple[str, ...], compose: Compose, question: str = ""
    ) -> None:
        self.name, self.settings, self.fixed, self.question = name, settings, fixed, question
        self._compose = compose
        self.space = dimensions(settings)
        self.trials: list[SearchTrial] = []
        self.uses: dict[tuple[str, str], dict[str, Any]] = {}
        self.recorded: list[dict[str, Any]] = []
        self.aside = 0  # recorded trials that lie outside the space
        self._jobs: dict[tuple[int, int, int], Job] = {}  # by trial, rung and seed
        self._configs: dict[tuple[int, int], RunConfig] = {}  # by trial and rung
        self._study: optuna.Study | None = None

    @property
    def total(self) -> int:
        """Return the number of trials, at most the number of points of a grid."""
        if self.settings.sampler != "grid":
            return self.settings.trials
        return min(self.settings.trials, math.prod(len(one.lattice() or ()) for one in self.space))

    @property
    def results_dir(self) -> str:
        """Return the folder of the runs."""
        return self.base.results_dir

    def check(self) -> None:
        """Import optuna, compose the command without its space, and load earlier trials. Raises ConfigError."""
        optuna_library(self.settings.sampler)
        for line in self.notices():
            log.info("%s", line)
        self.base = self._without_space()
        self.identity = identity(self.base, self.settings)
        self._study = open_study(self.settings.sampler, self.space, self.settings.seed)
        earlier = load_studies(self.results_dir).get(self.name)
        if earlier is None:
            return
        known = earlier.get("search")
        if not known or known["identity"]["base"] != self.identity["base"]:
            raise ConfigError(
                f"{self.results_dir}/studies/{self.name}.json holds another {'search' if known else 'study'}"
                + (f" (of {' '.join(known['fixed']) or 'the defaults'})" if known else "")
                + ": give this one a name (hydra.sweeper.name=NAME) or another results_dir"
            )
        self.recorded = known["trials"]
        self.uses = {(use["run_id"], use["arm"]): use for use in earlier["runs"]}
        if known["identity"] != self.identity or any(one["state"] == "failed" for one in self.recorded):
            self._enqueue()

    def _without_space(self) -> RunConfig:
        """Return the configuration of the command without its space.

        If a fixed key belongs to the options of a searched group, the first of them is chosen. Raises ConfigError for an option
        that lacks the key."""
        try:
            return self._compose(self.fixed)
        except ConfigError:
            groups = {one.key: one.choices for one in self.space if one.choices and "." not in one.key}
            if not groups:
                raise
            first = {key: choices[0] for key, choices in groups.items()}
            options = ({**first, key: choice} for key, choices in groups.items() for choice in choices)
            each = [self._compose([*(f"{k}={v}" for k, v in chosen.items()), *self.fixed]) for chosen in options]
            return each[0]

    def notices(self) -> list[str]:
        """Return notices on settings that have no effect."""
        own, lines = self.settings, []
        if own.trials > self.total:
            lines.append(f"hydra.sweeper.trials={own.trials}: the grid has {self.total} points")
        if own.sampler in ("tpe", "cmaes") and 1 < self.total <= (own.batch or 0):
            lines.append(
                f"hydra.sweeper.batch={own.batch}: all {self.total} trials are asked for together, before sampler={own.sampler} has "
                "learned from any"
            )
        return lines

    def _enqueue(self) -> None:
        """Enqueue the settings of earlier trials in order, as far as they lie in the space; then the sampler continues."""
        fits = [one for one in self.recorded if within(one["params"], self.space)]
        self.aside = len(self.recorded) - len(fits)
        self.recorded = [{**one, "number": i} for i, one in enumerate(fits)]
        if self.settings.sampler == "grid":  # it visits every point anyway
            self.recorded = []
            return
        self._study = open_study(self.settings.sampler, self.space, self.settings.seed + len(fits))
        for one in fits:
            self._study.enqueue_trial(one["params"])

    def ask(self) -> list[SearchTrial]:
        """Return the next batch of trials, empty if there are no more. Call `tell` on each batch before the next."""
        assert self._study is not None, "check first"
        begin = len(self.trials)
        number = self.trials[-1].batch + 1 if self.trials else 0
        before = [one["batch"] for one in self.recorded[begin:]]
        width = before.count(before[0]) if before else self.width
        batch: list[SearchTrial] = []
        for _ in range(min(width, self.total - begin)):
            trial = self._study.ask({one.key: one.distribution() for one in self.space})
            words = tuple(one.override(trial.params[one.key]) for one in self.space)
            batch.append(SearchTrial(begin + len(batch), number, dict(trial.params), words, trial))
        self.trials += batch
        for one in batch:
            self._try(one)
        if number == 0 and batch and all(one.state == "refused" for one in batch):
            raise ConfigError(f"{batch[0].label}: {batch[0].note}")
        return batch

    @property
    def width(self) -> int:
        """Return how many trials make a batch. A sampler only learns between batches."""
        if self.settings.halving is not None:
            return self.total
        if self.settings.batch is not None:
            return self.settings.batch
        many = [Job(self.base, "")] * self.total * len(self.settings.seeds)
        return max(1, slot_count(many) // len(self.settings.seeds))

    @property
    def rungs(self) -> list[float]:
        """Return the shares of the steps at which trials are compared, the last 1."""
        return self.settings.halving.rungs if self.settings.halving is not None else [1.0]

    def _try(self, one: SearchTrial) -> None:
        """Compose a trial at every length, and mark settings that make no model as refused."""
        try:
            for rung in range(len(self.rungs)):
                tokens = self._config(one, rung).tokens / self.rungs[rung]
                if abs(tokens / self.base.tokens - 1) > SAME_TOKENS and self.rungs[rung] == 1:
                    raise ConfigError(
                        f"would train on {tokens:,.0f} tokens where others train on {self.base.tokens:,}: "
                        f"give trainer.tokens={self.base.tokens}, so that all read equally much"
                    )
        except ConfigError as error:
            one.state, one.note = "refused", " ".join(str(error).split())

    def _config(self, one: SearchTrial, rung: int) -> RunConfig:
        """Return a trial's configuration at a rung: a whole run of fewer steps, with its own warmup and decay."""
        if (one.number, rung) in self._configs:
            return self._configs[one.number, rung]
        overrides = [*self.fixed, *one.words]
        share = self.rungs[rung]
        if share < 1:
            steps = max(1, round(share * self.base.trainer.steps))
            given = [item for item in overrides if item.partition("=")[0] not in LENGTHS]
            overrides = [*given, f"trainer.steps={steps}"]
        self._configs[one.number, rung] = self._compose(overrides).model_copy(update={"branches": None})
        return self._configs[one.number, rung]

    def configs(self, one: SearchTrial, rung: int) -> list[RunConfig]:
        """Return the runs of a trial at a rung, one per seed."""
        cfg = self._config(one, rung)
        mark = {"sweep": self.name, "arm": one.label, "stage": SEARCH}
        return [
            cfg.model_copy(
                update={"init_seed": seed, "data_seed": seed, "overrides": [*cfg.overrides, f"seed={seed}"], **mark}
            )
            for seed in self.settings.seeds
        ]

    def prepare(self, batch: Sequence[SearchTrial], rung: int) -> tuple[list[Job], dict[str, TokenData]]:
        """Return the jobs of trials at a rung, and the data of each by run id."""
        pending = [(trial, seed, cfg) for trial in batch for seed, cfg in enumerate(self.configs(trial, rung))]
        jobs, data = prepare_jobs([cfg for _, _, cfg in pending])
        by_overrides = {tuple(own): job for job in jobs for own in (job.cfg.overrides, *job.other_overrides)}
        length = f" · {self.rungs[rung]:.0%} of the steps" if self.rungs[rung] < 1 else ""
        for trial, seed, cfg in pending:
            job = self._jobs[trial.number, rung, seed] = by_overrides[tuple(cfg.overrides)]
            job.label = f"trial {trial.number} · {trial.label} · seed {cfg.init_seed}{length}"
            if job.run_id not in trial.runs:
                trial.runs.append(job.run_id)
            self.uses[job.run_id, trial.label] = use_of(job, cfg, trial.words)
        return jobs, data

    def run(self, launch: Launch) -> int:
        """Train the missing runs, batch by batch. Return the exit code. Calling it again continues."""
        self.check()
        worst = 0
        if self.aside:
            log.info("%d earlier trials lie outside the space and are left aside", self.aside)
        for trials, _, jobs, data in self.rounds():
            self.save()  # mark its runs as part of the search before they exist
            waiting = [job for job in jobs if not job.done]
            if waiting:
                first, last = trials[0].number, trials[-1].number
                numbers = f"s {first} to {last}" if len(trials) > 1 else f" {first}"
                log.info("%s: trial%s of %d", self.name, numbers, self.total)
                code = launch(waiting, data)
                if code >= 128:
                    return code
                worst = max(worst, code)
        self.save()
        report(self)
        return worst

    def rounds(self) -> Iterator[tuple[list[SearchTrial], int, list[Job], dict[str, TokenData]]]:
        """Yield trials that run together, their rung, their jobs and the data of each. The jobs must be done before the next."""
        while batch := self.ask():
            for rung in range(len(self.rungs)):
                alive = [one for one in batch if one.state == "asked"]
                if alive:
                    yield alive, rung, *self.prepare(alive, rung)
                    self.judge_rung(alive, rung)
            self.tell(batch)

    def judge_rung(self, alive: Sequence[SearchTrial], rung: int) -> None:
        """Read the results of a rung, and stop the trials that do not continue."""
        for one in alive:
            one.rung = rung
            self._read(one, rung)
            if one.value is not None:
                one.trial.report(one.value, step=rung)
        left = [one for one in alive if one.state == "asked"]
        if rung + 1 == len(self.rungs):
            for one in left:
                one.state = "completed"
            return
        assert self.settings.halving is not None
        order = sorted(left, key=lambda one: (one.value or 0.0, one.number))
        for one in order[max(1, math.ceil(self.settings.halving.keep * len(alive))) :]:
            one.state, one.note = "stopped", f"after {self.rungs[rung]:.0%} of the steps"

    def _read(self, one: SearchTrial, rung: int) -> None:
        """Set a trial's value to the mean of the metric over its seeds. A diverged run counts with its initial loss."""
        rows = [self._jobs[one.number, rung, i].directory.read_result() for i in range(len(self.settings.seeds))]
        results = [row for row in rows if row is not None and row.status != "failed"]
        if len(results) < len(rows):
            lost = len(rows) - len(results)
            one.state, one.note = "failed", f"{lost} of {len(rows)} runs without a result"
            return
        one.by_seed = [metric_of(row, self.settings.metric) for row in results]
        diverged = [row for row in results if row.status == "diverged"]
        if diverged:
            steps = ", ".join(str(row.diverged_at_step) for row in diverged)
            one.state, one.note = "diverged", f"{len(diverged)} of {len(results)} runs, at step {steps}"
        known = [value for value in one.by_seed if value is not None]
        one.value = statistics.fmean(known) if len(known) == len(results) else None

    def tell(self, batch: Sequence[SearchTrial]) -> None:
        """Report a batch to optuna. Refused and failed trials have no value; a stopped one reports its last."""
        assert self._study is not None
        state = optuna_library(self.settings.sampler).trial.TrialState
        for one in batch:
            if one.state in ("refused", "failed"):
                self._study.tell(one.trial, state=state.FAIL)
            elif one.state == "stopped" or one.value is None:
                self._study.tell(one.trial, state=state.PRUNED)
            else:
                self._study.tell(one.trial, one.value)

    @property
    def best(self) -> SearchTrial | None:
        """Return the finished trial at full length with the lowest value, the earlier of two equal ones."""
        done = [one for one in self.trials if one.state == "completed" and one.value is not None]
        return min(done, key=lambda one: (one.value, one.number), default=None)

    def save(self) -> None:
        """Write RESULTS_DIR/studies/<name>.json. Runs listed there are no evidence for any claim."""
        save_study(self.results_dir, self.name, content(self))
