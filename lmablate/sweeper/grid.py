"""Combine the values of several keys: all combinations, except for zipped keys and skipped combinations.

``sweep.zip`` is a list of lists of keys: the keys of one list take their first values together, then their second ones.
``sweep.skip`` is a list of mappings: a combination that has all values of one of them is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmablate.config.budget_matching import reference_overrides
from lmablate.config.hints import validated
from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings

Zips = list[list[str]]
Skips = list[dict[str, Any]]


class GridSettings(Settings):
    """The node ``sweep`` of a stored grid."""

    question: str | None = None
    claims: list[str] | None = None
    scales: dict[str, list[str]] | None = None
    zip: Zips | None = None
    skip: Skips | None = None


def read_grid(node: Mapping[str, Any]) -> GridSettings:
    """Return the checked node ``sweep`` of a grid. Raises ConfigError."""
    if node.get("arms"):
        raise ConfigError(
            "sweep.arms are the arms of a study: add `override /hydra/sweeper: study` to the sweep's defaults list"
        )
    if unknown := [key for key in node if key not in GridSettings.model_fields]:
        raise ConfigError(f"sweep.{unknown[0]}: a grid has no such key; it has {', '.join(GridSettings.model_fields)}")
    return validated(GridSettings, dict(node), "in the grid: sweep.")


def base_of(job: Mapping[str, str], varied: Collection[str]) -> tuple[str, ...]:
    """Return the overrides of a job without the `varied` keys that an ablation varies: those of size stay.

    The runs of one size have one base. They get its tokens (trainer.tokens_per_param), whatever their axes add to it."""
    sizes = reference_overrides([f"{key}={value}" for key, value in job.items() if key in varied], None)
    return (*(f"{key}={value}" for key, value in job.items() if key not in varied), *sizes)


def combinations(values: Mapping[str, Sequence[str]], zips: Zips | None, skips: Skips | None) -> list[dict[str, str]]:
    """Return every combination of `values`, with the last key changing fastest.

    A zipped key changes with the first key of its list. Raises ConfigError for names that do not vary, lists of unequal
    lengths, and where no combination is left."""
    varied = [key for key, own in values.items() if len(own) > 1]
    _check_zips(values, zips or [], varied)
    _check_skips(values, skips or [], varied)
    leads = {key: group[0] for group in _in_order(zips or [], values) for key in group}
    axes = [key for key in values if leads.get(key, key) == key]
    products = []
    for indices in itertools.product(*(range(len(values[key])) for key in axes)):
        index = dict(zip(axes, indices, strict=True))
        products.append({key: own[index[leads.get(key, key)]] for key, own in values.items()})
    kept = [combination for combination in products if not any(_matches(combination, skip) for skip in skips or ())]
    for skip in skips or ():
        if not any(_matches(combination, skip) for combination in products):
            raise ConfigError(f"{_shown(skip)}: sweep.zip makes no such combination, so there is none to leave out")
    if not kept:
        raise ConfigError(f"sweep.skip leaves none of the {len(products)} combinations: leave fewer out")
    return kept


def _in_order(zips: Zips, values: Mapping[str, Sequence[str]]) -> Zips:
    """Return each list with its keys in the order of the grid."""
    order = list(values)
    return [sorted(group, key=order.index) for group in zips]


def _check_zips(values: Mapping[str, Sequence[str]], zips: Zips, varied: Sequence[str]) -> None:
    seen: set[str] = set()
    for group in zips:
        shown = f"sweep.zip={','.join(group)}"
        if len(group) < 2:
            raise ConfigError(
                f"{shown}: pairs the values of two keys or more, e.g. sweep.zip=model.d_model,model.n_layers"
            )
        for key in group:
            _check_varies(shown, key, varied)
            if key in seen:
                raise ConfigError(f"{shown}: {key} stands there twice")
            seen.add(key)
        lengths = {key: len(values[key]) for key in group}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise ConfigError(
                f"{shown}: the first values go together, then the second ones, so all need as many: {counts}"
            )


def _check_skips(values: Mapping[str, Sequence[str]], skips: Skips, varied: Sequence[str]) -> None:
    for skip in skips:
        if not skip:
            raise ConfigError(
                "sweep.skip: an empty combination would leave out everything; name values, e.g. {norm: layer}"
            )
        for key, value in skip.items():
            _check_varies(_shown(skip), key, varied)
            if _plain(value) not in map(_plain, values[key]):
                raise ConfigError(
                    f"{_shown(skip)}: {key} takes {', '.join(values[key])} here, and not {value_text(value)}"
                )


def _check_varies(shown: str, key: str, varied: Sequence[str]) -> None:
    if key not in varied:
        raise ConfigError(f"{shown}: {key} has not several values here; {' and '.join(varied) or 'no key'} has")


def _matches(combination: Mapping[str, str], skip: Mapping[str, Any]) -> bool:
    return all(_plain(combination[key]) == _plain(value) for key, value in skip.items())


def _shown(skip: Mapping[str, Any]) -> str:
    return "sweep.skip=" + ",".join(f"{key}={value_text(value)}" for key, value in skip.items())


def value_text(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> float | str:
    """Return a value such that 1e-3, 0.001 and '0.001' compare equal."""
    text = value_text(value).strip().strip("'\"")
    try:
        return float(text)
    except ValueError:
        return text
