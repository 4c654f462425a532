"""A ladder study: every arm at several sizes, and the largest forecast from the others before it is trained.

Learning rates follow the rule of the recipe (``optim.lr=rule``) from rung to rung, times a factor that each arm gets at one
rung by tuning, and that is checked at the largest fitted rung by three rates (a bracket).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from lmablate.budget import flops_per_token
from lmablate.core.errors import ConfigError
from lmablate.results.load import flat_row
from lmablate.results.studies import load_studies
from lmablate.runs.run_directory import RunDirectory
from lmablate.scaling.forecast import forecasts
from lmablate.scaling.ladder import Ladder, ladder_of
from lmablate.schema.run_config import RunConfig
from lmablate.sweeper.fit import Fit, fit_lr, rounded
from lmablate.sweeper.rungs import LadderSettings, Rung, own_keys, rungs_of, tuned_at
from lmablate.sweeper.settings import SeedPair, combinations, expand_arms
from lmablate.sweeper.study import EVALUATE, TUNE, Study, Trial
from lmablate.sweeper.tuning import Cell, Tuning, mean

log = logging.getLogger(__name__)


def refuse_sizes(ladder: LadderSettings, fixed: Sequence[str]) -> None:
    """Raise ConfigError for an override of the command line that the rungs set themselves."""
    for override in fixed:
        key = override.lstrip("+").partition("=")[0]
        if key in own_keys(ladder):
            mend = "sweep.ladder.tokens_per_param" if key.startswith("trainer.") else "sweep.ladder.params and n_layers"
            raise ConfigError(f"{override}: the rungs of a ladder set {key}; set {mend}, or leave it out")


class LadderStudy(Study):
    """A study whose arms are those of its settings at every rung: ``geglu at 100k``."""

    rungs: list[Rung]
    cells: dict[str, tuple[str, Rung]]  # by name, the arm and its rung

    def check(self) -> None:
        """Solve the rungs and compose every arm at each. Raises ConfigError."""
        assert self.settings.ladder is not None
        ladder, kinds = self.settings.ladder, {arm.name: arm.overrides for arm in expand_arms(self.settings)}
        base = next(iter(kinds.values()))
        self.rungs = rungs_of(ladder, lambda own: self._compose([*own, *base], None))
        self.cells = {cell_name(arm, rung): (arm, rung) for rung in self.rungs for arm in kinds}
        self.arms = {name: (*rung.overrides, *kinds[arm]) for name, (arm, rung) in self.cells.items()}
        for name in self.arms:
            for settings in combinations(self.tune) if self.tune.mode != "none" else [()]:
                if self._base(name, settings).lr_from is None:
                    raise ConfigError(
                        f"arm {name} of sweeps={self.name}: optim.lr={self._base(name, settings).optim.lr:g} is one rate for all rungs: "
                        "leave it out, so that each rung has that of the rule (optim.lr=rule)"
                    )
        self.tune_rung = tuned_at(ladder, self.rungs)
        if self.tune.mode != "none":
            tuned = [cell_name(arm, self.tune_rung) for arm in kinds]
            self.tuning = Tuning(self.tune, {name: self.own_lr(name) for name in tuned})
        self.brackets: dict[str, Fit] = {}
        self.records = (load_studies(self.results_dir).get(self.name) or {}).get("forecasts", [])

    @property
    def kinds(self) -> list[str]:
        """Return the arms of the settings, the first the baseline."""
        return list(dict.fromkeys(arm for arm, _ in self.cells.values()))

    def baseline_of(self, arm: str) -> str:
        """Return the first arm at the rung of `arm`."""
        return cell_name(self.kinds[0], self.cells[arm][1])

    def labels(self, trial: Trial, cfg: RunConfig, longest: RunConfig) -> dict[str, Any]:
        """Return the arm and the rung of a use, and its tokens beside those of its longest branch."""
        arm, rung = self.cells[trial.arm]
        return {"of": arm, "rung": rung.name, "tokens": cfg.tokens, "whole": longest.tokens}

    def stages(self) -> Iterator[list[Trial]]:
        """Yield tuning, the bracket, the fitted rungs, and what is forecast after its forecast was made."""
        yield from self.tuning_stages()
        if bracket := self._bracket():
            yield bracket
            self._read_bracket(bracket)
        self.stage = EVALUATE
        for held_out in (False, True):
            trials = [
                trial
                for pair in self.pairs
                for name, (_, rung) in self.cells.items()
                if rung.held_out == held_out
                for trial in self._evaluation(name, pair)
            ]
            if held_out and trials:
                if self.missing:
                    return  # nothing is forecast from part of the runs, and nothing trained before its forecast
                self._forecast(trials)
            if trials:
                self.evaluated |= {(trial.arm, trial.stage, trial.seeds) for trial in trials}
                yield trials

    def _chosen(self, name: str) -> tuple[tuple[str, ...], float]:
        """Return the settings and the learning rate of an arm at a rung: the rule's, times the factor of its tuning."""
        if self.tuning is None:
            return (), self.own_lr(name)
        tuned = cell_name(self.cells[name][0], self.tune_rung)
        settings, lr = self.tuning.choice(tuned, shared=self.tune.mode == "shared")
        return settings, rounded(self.own_lr(name) * lr / self.own_lr(tuned))

    def _evaluation(self, arm: str, pair: SeedPair) -> list[Trial]:
        settings, lr = self._chosen(arm)
        return [Trial(arm, settings, EVALUATE, lr, pair)]

    def _bracket(self) -> list[Trial]:
        """Return the runs that check each arm's rate at the largest fitted rung; none if it is tuned there."""
        top = [rung for rung in self.rungs if not rung.held_out][-1]
        factors = self.tune.factors or []
        beside = [
            *sorted(factor for factor in factors if factor < 1)[-1:],
            1.0,
            *sorted(factor for factor in factors if factor > 1)[:1],
        ]
        if self.tuning is None or top is self.tune_rung or len(beside) < 3:
            return []
        out = []
        for name in (cell_name(arm, top) for arm in self.kinds):
            settings, lr = self._chosen(name)
            rates = [rounded(lr * factor) for factor in beside]
            out += [Trial(name, settings, TUNE, rate, SeedPair(s, s)) for rate in rates for s in self.tune.seeds or ()]
        return out

    def _read_bracket(self, trials: Sequence[Trial]) -> None:
        for name in dict.fromkeys(trial.arm for trial in trials):
            losses: dict[float, list[float | None]] = {}
            for trial in trials:
                if trial.arm == name and trial in self.losses:
                    losses.setdefault(trial.lr, []).append(self.losses[trial])
            if losses:
                means = {lr: mean(own) for lr, own in losses.items()}
                self.brackets[name] = fit_lr(means)

    def later(self) -> list[RunConfig]:
        """Return the runs that are not known yet, the bracket's with them."""
        known = {(arm, lr) for (_, arm, stage), use in self.uses.items() if stage == TUNE for lr in [use["lr"]]}
        bracket = [trial for trial in self._bracket() if (trial.arm, trial.lr) not in known]
        return [cfg for trial in bracket for cfg in self.configs(trial)] + super().later()

    def ladder(self) -> Ladder:
        """Return the finished runs of the study as a ladder."""
        rows = {}
        for use in self.uses.values():
            row = RunDirectory(self.results_dir, use["run_id"]).read_result()
            if row is not None:
                rows[use["run_id"]] = flat_row(row)
        return ladder_of({"sweep": self.name, **self.more_record(), "runs": list(self.uses.values())}, rows)

    def _forecast(self, trials: Sequence[Trial]) -> None:
        """Record the forecast of the rung of `trials`, unless the same runs have made it before."""
        jobs, _ = self.prepare(trials)
        self.missing -= set(trials)  # they wait for nothing but this
        cells = {trial.arm for trial in trials}
        done = {(job.cfg.arm, job.cfg.init_seed, job.cfg.data_seed) for job in jobs if job.done}
        rung = self.cells[trials[0].arm][1].name
        lower = sorted(
            use["run_id"] for (_, arm, stage), use in self.uses.items() if stage == EVALUATE and use["rung"] != rung
        )
        if any(one["rung"] == rung and one["runs"] == lower for one in self.records):
            return
        baseline = next(name for name in self.cells if name in cells)
        cfg = self._job_of[next(trial for trial in trials if trial.arm == baseline)].cfg
        at = float(flops_per_token(cfg)) * cfg.tokens
        known = {  # both sides of a pair are trained, so the difference could be looked up
            arm: any({(name, *pair), (baseline, *pair)} <= done for pair in self.pairs)
            for name in cells
            for arm in [self.cells[name][0]]
        }
        found = forecasts(self.ladder(), at, len(self.pairs))
        self.records.append({
            "rung": rung, "date": datetime.now(UTC).isoformat(timespec="seconds"), "flops": at, "level": 0.9, "runs": lower,
            "arms": [{**one._asdict(), "blind": not known[one.arm]} for one in found],
        })  # fmt: skip
        for one in found:
            log.info("forecast of %s at %s: %s", one.arm, rung, forecast_words(one._asdict()))

    def arm_record(self, name: str) -> dict[str, Any]:
        """Return the record of an arm's learning rate at its rung."""
        if self.tuning is not None and Cell(name, self._settings(name)) in self.tuning.grids:
            return super().arm_record(name)
        settings, lr = self._chosen(name) if self._is_tuned() else ((), None)
        words = (
            "by the rule" if self.tuning is None else f"by the rule, times the factor tuned at {self.tune_rung.name}"
        )
        if name in self.brackets:
            words += f"; the bracket: {self.brackets[name].words}"
        return {"lr": lr, "settings": list(settings), "words": words, "fit": None, "grid": []}

    def _is_tuned(self) -> bool:
        return self.tuning is None or bool(self.tuning.losses)

    def more_record(self) -> dict[str, Any]:
        """Return the rungs, the arms and the forecasts."""
        rungs = [{**r._asdict(), "overrides": list(r.overrides)} for r in self.rungs]
        return {"ladder": {"arms": self.kinds, "rungs": rungs}, "forecasts": self.records}

    def decisions(self) -> list[str]:
        """Return the chosen rates, what the bracket found, and the forecasts."""
        brackets = [f"{name}: bracket: {fit.words}" for name, fit in self.brackets.items()]
        made = [
            f"{one['arm']} at {entry['rung']}, forecast on {entry['date'][:10]}: {forecast_words(one)}"
            for entry in self.records
            for one in entry["arms"]
        ]
        return super().decisions() + brackets + made


def cell_name(arm: str, rung: Rung) -> str:
    """Return the name of an arm at a rung: ``geglu at 100k``."""
    return f"{arm} at {rung.name}"


def forecast_words(one: dict[str, Any]) -> str:
    """Return a forecast as text."""
    if one["interval"] is None:
        return f"none ({one['problem']})"
    low, high = one["interval"]
    return f"{one['difference']:+.4f} nats per token, {low:+.4f} to {high:+.4f} (90 %)"
