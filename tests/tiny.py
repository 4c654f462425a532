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


# Options that run the code of another one with other numbers, a function or a schedule of angles: their neighbours are the fast cases.
ALIKE = {
    "activation": "elu selu silu relu gelu_tanh identity bilinear glu reglu geglu_tanh".split(),
    "posemb": "rope_linear rope_dynamic rope_llama3 rope_longrope".split(),
    "aspect_ratio": "r4 r8 r16 r32 r64 r256".split(),
    "ffn": [path.stem for path in (CONF_DIR / "ffn").glob("*.yaml") if path.stem not in ("dense", "token_choice")],
}


def option_cases() -> list[Any]:
    """For parametrize: every option. Those that are like another one are slow cases, as are the aspect ratios but one, full-sized
    models of one architecture, and the mixtures of experts but one, small operations in large numbers."""
    return [
        pytest.param(axis, option, marks=pytest.mark.slow if option in ALIKE.get(axis, ()) else ())
        for axis, option in every_option()
    ]
