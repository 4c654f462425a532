"""Define the types of numbers and components in a configuration."""

import math
import os
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field


def _whole(value: Any) -> Any:
    """Convert a whole float to an integer, since YAML reads 1e6 as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
ClosedFraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
TokensPerParam = Annotated[float, Field(gt=0, le=1_000_000)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


def _run_id(value: Any) -> Any:
    """Return a run id as text, restoring one that YAML has read as a number. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        value = f"{value:012d}"
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{12}", value):
        raise ValueError(
            f"trainer.init_from={value}: give the id of a run, the name of its folder in results_dir: 12 digits and letters a to f "
            "(in quotes where they look like a number)"
        )
    return value


RunId = Annotated[str, BeforeValidator(_run_id)]


def _folder(value: str) -> str:
    """Return a folder with ``~`` expanded. Raises ValueError for an empty name or control characters."""
    if not value.strip() or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        raise ValueError(f"{value!r} is no name of a folder: give one, such as results")
    return os.path.expanduser(value)


Folder = Annotated[str, AfterValidator(_folder)]


def _std(value: Any, *, rules: tuple[str, ...]) -> float | str:
    """Return a standard deviation, or the rule for one: a word of `rules` or a multiple such as ``0.5*fan_in``.

    Raises ValueError for a value that is neither, or not positive."""
    if isinstance(value, str):
        factor, star, word = value.replace(" ", "").rpartition("*")
        try:
            times = float(factor) if star else 1.0
            if word in rules and 0 < times < math.inf:
                return word if times == 1 else f"{times:g}*{word}"
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{value} is no standard deviation: give a positive number such as 0.02, a rule ({' or '.join(rules)}), or a multiple "
            f"of a rule such as 0.5*{rules[0]}"
        )
    return float(value)


MatrixStd = Annotated[float | str, BeforeValidator(partial(_std, rules=("fan_in",)))]
RowStd = Annotated[float | str, BeforeValidator(partial(_std, rules=("unit", "fan_in")))]


def _rate(value: Any) -> float | str:
    """Return a learning rate, or the word ``rule``. Raises ValueError for anything else."""
    if value == "rule":
        return "rule"
    try:
        rate = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"{value} is no learning rate: give a positive number such as 3e-3, or rule (optim.lr_rule)")
    return rate


LearningRate = Annotated[float | Literal["rule"], BeforeValidator(_rate)]


def _names_a_target(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("_target_"), str):
        raise ValueError("needs a _target_: the dotted path of a class or function")
    return part


# A swappable component: model/components.py checks its keys against the signature of its target.
Part = Annotated[dict[str, Any], AfterValidator(_names_a_target)]
