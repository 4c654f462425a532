"""Claims as data: the statement, its source, and the comparison of arms that would show it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings

FOLDER = Path(__file__).parent
GRADES = {
    "V1": "read in the paper or repository itself",
    "V2": "read in a transcription or note of it",
    "V3": "read off a figure, approximate",
    "V4": "computed from published run logs",
    "R": "an unpublished log, mostly of one seed",
    "U": "from memory, unverified",
}
Grade = Literal["V1", "V2", "V3", "V4", "R", "U"]
Longer = Literal["val_loss_2x", "val_loss_4x", "val_loss_8x", "val_loss_16x"]  # windows over the training length
Spikes = Literal["loss_spike_score", "grad_norm_spike_score"]
Metric = Literal["val_loss", "val_bpb", "train_loss", "lr_sensitivity", "diverged", "longer_error"] | Spikes | Longer
Direction = Literal["lower", "higher", "equal", "not_higher"]
Value = str | bool | int | float | None
Arms = dict[str, Value | list[Value]]
AnyClaim = TypeVar("AnyClaim", bound=Settings)


class Published(Settings):
    """A published result. `words`: the numbers as printed; `effect`: their contrast in the test's unit, if there is one, and `params` the
    size of the models."""

    words: str
    source: str
    grade: Grade
    effect: float | None = None
    params: Annotated[float, Field(gt=0)] | None = None


class Term(Settings):
    """A selection of runs by their columns, with the weight of their mean in the contrast.

    A column is an axis (`norm`), a configuration key (`optim.weight_decay`), or a shape of claims/predicates.py
    (`shape.ff_ratio`). Its value is a word, a number (matched within 6 %), or a list of them: each listed option with runs
    is one arm, and the arms are averaged. A text ``low..high`` is a range of numbers.
    """

    arms: Arms
    weight: float


class Hypothesis(Settings):
    """One contrast: the weighted sum of its terms, in per cent of the mean of the terms with negative weight.

    `direction`: the claimed sign: `lower` or `higher` than 0, `equal` to 0 within `margin`, or `not_higher` than `margin`.
    `margin`, in per cent, is also the smallest difference that counts in any direction. For `diverged` the contrast is of
    fractions, in percentage points. `where`: conditions on all its runs. `follow`: further columns that may differ
    between the arms. `matched`: the size that must agree within 1 %. `says`: the hypothesis as a sentence.
    """

    says: str
    plus: Arms | None = None
    minus: Arms | None = None
    terms: list[Term] | None = None
    metric: Metric
    direction: Direction
    margin: Annotated[float, Field(gt=0)]
    where: Arms | None = None
    follow: list[str] | None = None
    matched: Literal["n_params", "n_params_non_embedding", "flops_per_token"] | None = None
    view: Literal["own", "shared"] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Hypothesis:
        if (self.plus is None) != (self.minus is None) or (self.plus is None) == (self.terms is None):
            raise ValueError("give plus and minus, or terms")
        if not any(term.weight < 0 for term in self.contrast):
            raise ValueError("a contrast needs a term with negative weight, to be measured against")
        if abs(sum(term.weight for term in self.contrast)) > 1e-9:
            raise ValueError("the weights of a contrast sum to 0")
        return self

    @property
    def contrast(self) -> list[Term]:
        """Return the terms of the contrast."""
        if self.terms is not None:
            return self.terms
        return [Term(arms=self.plus or {}, weight=1.0), Term(arms=self.minus or {}, weight=-1.0)]

    @property
    def columns(self) -> list[str]:
        """Return the columns that tell the terms apart."""
        return list(dict.fromkeys(column for term in self.contrast for column in term.arms))


class LawTest(Settings):
    """A claim on a scaling law of a ladder's baseline: `parameter` of `form` (scaling/forms.py) lies between `low` and `high`."""

    says: str
    form: Literal["chinchilla", "compute", "kaplan_n", "kaplan_d", "kaplan_c"]
    parameter: str
    low: float
    high: float


class StatisticTest(Settings):
    """A claim on a statistic over many runs (statistics.py): it lies between `low` and `high`. `where`: conditions on the runs."""

    says: str
    statistic: Literal["early_logit_auc", "rate_share", "best_depth_slope", "seed_spread", "survival"]
    low: float
    high: float
    where: Arms | None = None


class Claim(Settings):
    """One claim of the lecture, or of method.

    `id`: as in the lecture's list. `pages`: pages of its notes, or slides; None for a matter of method. `texts`: the texts on each of
    which it must hold (``[kjv, sotu]``); None: on any one. `untested`: the reason why no test of results bears on it.
    `evidence: ladder`: the verdict is on several sizes (ladder_verdicts.py), and `said_of` the non-embedding parameters of which it is
    said; `laws`: tests of the law of a ladder's baseline, instead of contrasts of arms. `statistics`: tests of a statistic over many runs,
    likewise."""

    id: str
    group: str
    priority: Annotated[int, Field(ge=1, le=3)]
    pages: str | None = None
    statement: str
    expected: str
    smallest_scale: str
    design: str
    published: list[Published]
    sweep: str | None
    minimum_seeds: Annotated[int, Field(ge=2)]
    smallest_params: Annotated[int, Field(gt=0)] | None = None
    texts: Annotated[list[str], Field(min_length=1)] | None = None
    tests: list[Hypothesis]
    untested: str | None = None
    evidence: Literal["ladder"] | None = None
    said_of: Annotated[float, Field(gt=0)] | None = None
    laws: list[LawTest] | None = None
    statistics: list[StatisticTest] | None = None

    @model_validator(mode="after")
    def _tested_or_not(self) -> Claim:
        if [bool(self.tests), bool(self.laws), bool(self.statistics), bool(self.untested)].count(True) != 1:
            raise ValueError("give tests, laws or statistics, or untested with the reason why there are none")
        if self.evidence is None and (self.laws or self.said_of):
            raise ValueError("laws and said_of are of claims on several sizes: give evidence: ladder")
        return self


@cache
def load_claims() -> dict[str, Claim]:
    """Return all claims by id, in the order of their files. Raises ConfigError if a file is wrong."""
    return read_claims(sorted(FOLDER.glob("*.yaml")), Claim)


def read_claims(paths: Iterable[Path], kind: type[AnyClaim]) -> dict[str, AnyClaim]:
    """Return the claims of these files by id.

    Keys next to ``claims`` hold for each of them. Raises ConfigError with file and claim."""
    import yaml

    claims: dict[str, AnyClaim] = {}
    for path in paths:
        content = yaml.safe_load(path.read_text())
        for entry in content.pop("claims"):
            try:
                claim = kind.model_validate({**content, **entry})
            except ValidationError as error:
                raise ConfigError(f"{path.name}, claim {entry.get('id')}: {error}") from error
            if entry["id"] in claims:
                raise ConfigError(f"{path.name}: claim {entry['id']} stands there twice")
            claims[entry["id"]] = claim
    return claims
