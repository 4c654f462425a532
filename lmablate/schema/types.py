"""What a number or a part of the configuration may be."""

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _whole(value: Any) -> Any:
    """1e6 is how people write a million; YAML makes a float of it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
ClosedFraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


def _run_id(value: Any) -> Any:
    """Twelve hexadecimal digits, of which YAML reads some as a number; a whole one is put back."""
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
    """``~`` is the home. Empty, it would be the current folder, full of runs; a file system takes no NUL, and a terminal no
    other such sign."""
    if not value.strip() or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        raise ValueError(f"{value!r} is no name of a folder: give one, such as results")
    return os.path.expanduser(value)


Folder = Annotated[str, AfterValidator(_folder)]


def _names_a_target(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("_target_"), str):
        raise ValueError("needs a _target_: the dotted path of a class or function")
    return part


# A swappable part: its keys are checked against the signature of its target, in model/parts.py.
Part = Annotated[dict[str, Any], AfterValidator(_names_a_target)]
