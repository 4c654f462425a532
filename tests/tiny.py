"""The small configurations of lmablate.check, and the options to try them on."""

from typing import Any

import pytest

from lmablate.check.small import (
    SHORT,
    SMALL,
    VOCAB,
    SmallText,
    config,
    distance,
    request,
    scaled_model,
    tokens_for,
    training_record,
)
from lmablate.core.axes import AXES
from lmablate.core.paths import CONF_DIR

__all__ = [
    "AXES",
    "SHORT",
    "SMALL",
    "VOCAB",
    "SmallText",
    "config",
    "distance",
    "every_option",
    "option_cases",
    "options",
    "request",
    "scaled_model",
    "tokens_for",
    "training_record",
]


def options(axis: str) -> list[str]:
    """The option words of an axis: whatever stands in conf/."""
    return sorted(path.stem for path in (CONF_DIR / axis).glob("*.yaml"))


def every_option() -> list[tuple[str, str]]:
    return [(axis, option) for axis in AXES for option in options(axis)]


def option_cases() -> list[Any]:
    """For parametrize: every option, of which the aspect ratios but one are slow, being full-sized models of one architecture,
    and of the mixtures of experts all but one, which share most of their code and are small operations in large numbers."""
    fast = {"aspect_ratio": ("none", "r128"), "ffn": ("dense", "token_choice")}
    return [
        pytest.param(axis, option, marks=() if option in fast.get(axis, (option,)) else pytest.mark.slow)
        for axis, option in every_option()
    ]
