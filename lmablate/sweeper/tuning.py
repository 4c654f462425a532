"""The tuning stage of a study: which learning rates are tried, and what each arm's losses say."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError
from lmablate.sweeper.fit import Edge, Fit, beyond, fit_lr, rounded
from lmablate.sweeper.settings import TuneSettings, combinations


class Cell(NamedTuple):
    """What has a learning rate of its own: an arm, with one combination of tune.cross."""

    arm: str
    settings: tuple[str, ...]


class Tuning:
    """Learning rates and losses of every cell; `base` is each arm's own optim.lr."""

    def __init__(self, tune: TuneSettings, base: dict[str, float]) -> None:
        self.tune = tune
        if tune.mode in ("shared", "both") and len(set(base.values())) > 1:
            raise ConfigError(
                f"tune={tune.mode} gives all arms one learning rate, and they start from different ones "
                f"(optim.lr={', '.join(f'{lr:g}' for lr in sorted(set(base.values())))}): use tune=per_arm"
            )
        self.settings = combinations(tune)
        self.grids = {
            Cell(arm, words): sorted(rounded(factor * lr) for factor in tune.factors or ())
            for arm, lr in base.items()
            for words in self.settings
        }
        self.losses: dict[tuple[Cell, float], dict[int, float | None]] = {}
        self.extended = 0

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(cell.arm for cell in self.grids))

    def points(self) -> Iterator[tuple[Cell, float]]:
        """Every learning rate of every cell, as far as is known now."""
        for cell, grid in self.grids.items():
            for lr in sorted(grid):
                yield cell, lr

    def take(self, cell: Cell, lr: float, seed: int, loss: float | None) -> None:
        """Note a final loss; None: it diverged."""
        self.losses.setdefault((cell, lr), {})[seed] = loss

    def extend(self) -> bool:
        """Add a learning rate where the best lies at an edge; False when nothing is left to add, or no longer allowed."""
        if self.extended >= (self.tune.extend or 0):
            return False
        grown = False
        if self.tune.mode in ("per_arm", "both"):
            for cell in self.grids:
                grown |= self._grow([cell], self._edge(self.fit(cell)))
        if self.tune.mode in ("shared", "both"):
            for words in self.settings:
                grown |= self._grow([Cell(arm, words) for arm in self.arms], self._edge(self.fit_shared(words)))
        self.extended += grown
        return grown

    def _edge(self, fit: Fit) -> Edge | None:
        """The side to look at: below everything where all of it diverged."""
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
        """The mean final loss over the tuning seeds; None if one diverged."""
        values = self.losses[(cell, lr)].values()
        finished = [value for value in values if value is not None]
        return statistics.fmean(finished) if len(finished) == len(values) else None

    def fit(self, cell: Cell) -> Fit:
        """The best learning rate of a cell; runs that failed are not in it."""
        losses = {lr: self.mean(cell, lr) for lr in self.grids[cell] if (cell, lr) in self.losses}
        return fit_lr(losses) if losses else Fit(None, None, None, None, None, (), "no tuning run has finished")

    def fit_shared(self, words: tuple[str, ...]) -> Fit:
        """The best learning rate for all arms together: of the mean of their losses, where none of them diverged."""
        cells = [Cell(arm, words) for arm in self.arms]
        common = [lr for lr in self.grids[cells[0]] if all((cell, lr) in self.losses for cell in cells)]
        if not common:
            return Fit(None, None, None, None, None, (), "no learning rate has finished in every arm")
        losses: dict[float, float | None] = {}
        for lr in common:
            means = [self.mean(cell, lr) for cell in cells]
            finished = [mean for mean in means if mean is not None]
            losses[lr] = statistics.fmean(finished) if len(finished) == len(means) else None
        return fit_lr(losses)

    def choice(self, arm: str, *, shared: bool = False) -> tuple[tuple[str, ...], float]:
        """The settings and the learning rate an arm is evaluated at; where all diverged, the lowest rate tried, so that
        the evaluation seeds say so themselves."""
        fits = {words: self.fit_shared(words) if shared else self.fit(Cell(arm, words)) for words in self.settings}
        found = {words: fit for words, fit in fits.items() if fit.lr is not None}
        if not found:
            words = self.settings[0]
            return words, min(lr for cell, lr in self.points() if cell.arm == arm and cell.settings == words)
        words = min(found, key=lambda key: found[key].predicted or 0.0)
        lr = found[words].lr
        assert lr is not None
        return words, lr

    def arm(self, arm: str) -> dict[str, Any]:
        """What the study's file says of an arm: its choice, its fit, and every point behind it."""
        words, lr = self.choice(arm, shared=self.tune.mode == "shared")
        if not any(cell.arm == arm for cell, _ in self.losses):
            return {"lr": None, "settings": [], "words": "not tuned yet", "fit": None, "grid": []}
        fit = self.fit_shared(words) if self.tune.mode == "shared" else self.fit(Cell(arm, words))
        return {
            "lr": lr,
            "settings": list(words),
            "words": self._say(fit, lr),
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
        """The one learning rate for all arms, in the modes that ask for it."""
        if self.tune.mode == "per_arm" or not self.losses:
            return None
        words, lr = self.choice(self.arms[0], shared=True)
        fit = self.fit_shared(words)
        return {"lr": lr, "settings": list(words), "words": self._say(fit, lr), "fit": _plain(fit)}

    def notes(self) -> list[str]:
        """One line an arm, and one for the shared rate."""
        lines = []
        if self.tune.mode != "shared":
            tuned = {cell.arm for cell, _ in self.losses}
            lines += [f"{arm}: learning rate {self.arm(arm)['words']}" for arm in self.arms if arm in tuned]
        if shared := self.shared():
            lines.append(f"all arms: learning rate {shared['words']}")
        return lines

    def _say(self, fit: Fit, lr: float) -> str:
        if fit.lr is None:
            return f"{lr:g}, but {fit.words}: evaluated at the lowest tried"
        if fit.edge is not None:
            times = f"{self.extended} extension{'s' * (self.extended != 1)}"
            return (
                f"{lr:g}, but {fit.words}, after {times} (tune.extend={self.tune.extend}): the optimum may lie beyond"
            )
        return fit.words


def _plain(fit: Fit) -> dict[str, Any]:
    return {
        **fit._asdict(),
        "used": list(fit.used),
        "coefficients": list(fit.coefficients) if fit.coefficients else None,
    }
