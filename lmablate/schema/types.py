"""Define the types of numbers and components in a configuration."""

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _whole(value: Any) -> Any:
    """Convert a whole float to an integer, since YAML reads 1e6 as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
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


def _names_a_target(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("_target_"), str):
        raise ValueError("needs a _target_: the dotted path of a class or function")
    return part


# A swappable component: model/components.py checks its keys against the signature of its target.
Part = Annotated[dict[str, Any], AfterValidator(_names_a_target)]
