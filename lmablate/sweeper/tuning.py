"""The tuning stage of a study: the learning rates that are tried, and the choice from each arm's losses."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError
from lmablate.sweeper.fit import Edge, Fit, beyond, fit_lr, no_fit, rounded
from lmablate.sweeper.settings import TuneSettings, combinations


class Cell(NamedTuple):
    """A unit that gets its own learning rate: an arm, with one combination of tune.cross."""

    arm: str
    settings: tuple[str, ...]


class Tuning:
    """The learning rates and losses of every cell. `base` is each arm's own optim.lr. Raises ConfigError."""

    def __init__(self, tune: TuneSettings, base: dict[str, float]) -> None:
        self.tune = tune
        if tune.mode in ("shared", "both") and len(set(base.values())) > 1:
            raise ConfigError(
                f"tune={tune.mode} gives all arms one learning rate, and they start from different ones "
                f"(optim.lr={', '.join(f'{lr:g}' for lr in sorted(set(base.values())))}): use tune=per_arm"
            )
        self.settings = combinations(tune)
        self.grids = {
            Cell(arm, settings): sorted(rounded(factor * lr) for factor in tune.factors or ())
            for arm, lr in base.items()
            for settings in self.settings
        }
        self.losses: dict[tuple[Cell, float], dict[int, float | None]] = {}
        self.extended = 0

    @property
    def arms(self) -> list[str]:
        """Return the names of the arms."""
        return list(dict.fromkeys(cell.arm for cell in self.grids))

    def points(self) -> Iterator[tuple[Cell, float]]:
        """Yield every learning rate of every cell known so far."""
        for cell, grid in self.grids.items():
            for lr in sorted(grid):
                yield cell, lr

    def record(self, cell: Cell, lr: float, seed: int, loss: float | None) -> None:
        """Record a final loss, nats per token; None if the run diverged."""
        self.losses.setdefault((cell, lr), {})[seed] = loss

    def extend(self) -> bool:
        """Add a learning rate where the best lies at an edge. Return False if nothing was added or no extension is left."""
        if self.extended >= (self.tune.extend or 0):
            return False
        grown = False
        if self.tune.mode in ("per_arm", "both"):
            for cell in self.grids:
                grown |= self._grow([cell], self._edge(self.fit(cell)))
        if self.tune.mode in ("shared", "both"):
            for settings in self.settings:
                grown |= self._grow([Cell(arm, settings) for arm in self.arms], self._edge(self.fit_shared(settings)))
        self.extended += grown
        return grown

    def _edge(self, fit: Fit) -> Edge | None:
        """Return the side on which to extend: the low one if every rate diverged."""
        return "low" if fit.lr is None else fit.edge

    def _grow(self, cells: list[Cell], edge: Edge | None) -> bool:
        if edge is None:
            return False
        lr = beyond(sorted({lr for cell in cells for lr in self.grids[cell]}), edge)
        fresh = [cell for cell in cells if lr not in self.grids[cell]]
        for cell in fresh:
            self.grids[cell].append(lr)
        return bool(fresh)

    def mean(self, cell: Cell, lr: float) -> float | None:
        """Return the mean final loss over the tuning seeds, or None if one diverged."""
        return mean(self.losses[(cell, lr)].values())

    def fit(self, cell: Cell) -> Fit:
        """Return the fit of a cell, without failed runs."""
        losses = {lr: self.mean(cell, lr) for lr in self.grids[cell] if (cell, lr) in self.losses}
        return fit_lr(losses) if losses else no_fit("no tuning run has finished")

    def fit_shared(self, settings: tuple[str, ...]) -> Fit:
        """Return the fit for all arms together, of the mean of their losses."""
        cells = [Cell(arm, settings) for arm in self.arms]
        common = [lr for lr in self.grids[cells[0]] if all((cell, lr) in self.losses for cell in cells)]
        if not common:
            return no_fit("no learning rate has finished in every arm")
        return fit_lr({lr: mean([self.mean(cell, lr) for cell in cells]) for lr in common})

    def choice(self, arm: str, *, shared: bool = False) -> tuple[tuple[str, ...], float]:
        """Return the settings and the learning rate at which an arm is evaluated.

        If every rate diverged, it is the lowest one tried, so that the evaluation seeds show the divergence themselves."""
        fits = {key: self.fit_shared(key) if shared else self.fit(Cell(arm, key)) for key in self.settings}
        fitted = {settings: fit for settings, fit in fits.items() if fit.lr is not None}
        if not fitted:
            settings = self.settings[0]
            return settings, min(lr for cell, lr in self.points() if cell.arm == arm and cell.settings == settings)
        settings = min(fitted, key=lambda key: fitted[key].predicted or 0.0)
        lr = fitted[settings].lr
        assert lr is not None
        return settings, lr

    def arm(self, arm: str) -> dict[str, Any]:
        """Return the record of an arm for the study's file: its choice, its fit, and every point of the grid."""
        settings, lr = self.choice(arm, shared=self.tune.mode == "shared")
        if not any(cell.arm == arm for cell, _ in self.losses):
            return {"lr": None, "settings": [], "words": "not tuned yet", "fit": None, "grid": []}
        fit = self.fit_shared(settings) if self.tune.mode == "shared" else self.fit(Cell(arm, settings))
        return {
            "lr": lr,
            "settings": list(settings),
            "words": self._sentence(fit, lr),
            "fit": _plain(fit),
            "grid": [
                {
                    "lr": point,
                    "settings": list(cell.settings),
                    "loss": self.mean(cell, point),
                    "losses": list(self.losses[(cell, point)].values()),
                }
                for cell, point in self.points()
                if cell.arm == arm and (cell, point) in self.losses
            ],
        }

    def shared(self) -> dict[str, Any] | None:
        """Return the record of the shared learning rate, or None in the mode ``per_arm`` and before tuning."""
        if self.tune.mode == "per_arm" or not self.losses:
            return None
        settings, lr = self.choice(self.arms[0], shared=True)
        fit = self.fit_shared(settings)
        return {"lr": lr, "settings": list(settings), "words": self._sentence(fit, lr), "fit": _plain(fit)}

    def notes(self) -> list[str]:
        """Return one line per arm, and one for the shared rate."""
        lines = []
        if self.tune.mode != "shared":
            tuned = {cell.arm for cell, _ in self.losses}
            lines += [f"{arm}: learning rate {self.arm(arm)['words']}" for arm in self.arms if arm in tuned]
        if shared := self.shared():
            lines.append(f"all arms: learning rate {shared['words']}")
        return lines

    def _sentence(self, fit: Fit, lr: float) -> str:
        if fit.lr is None:
            return f"{lr:g}, but {fit.words}: evaluated at the lowest tried"
        if fit.edge is not None:
            times = f"{self.extended} extension{'s' * (self.extended != 1)}"
            return (
                f"{lr:g}, but {fit.words}, after {times} (tune.extend={self.tune.extend}): the optimum may lie beyond"
            )
        return fit.words


def mean(values: Collection[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _plain(fit: Fit) -> dict[str, Any]:
    return {
        **fit._asdict(),
        "used": list(fit.used),
        "coefficients": list(fit.coefficients) if fit.coefficients else None,
    }
