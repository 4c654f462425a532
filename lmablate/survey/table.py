"""The table of published systems, from conf/preset, and what systems.yaml adds to it.

A release is a set of systems published together (``LLaMA-2``: 7B, 34B, 70B). Its largest system represents it where releases
are counted, since its smaller ones are not independent choices.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.core.settings import Settings

Row = dict[str, Any]
FILE = Path(__file__).parent / "systems.yaml"
# The part of a system's name that is its size or edition, and not its release.
_SIZE = re.compile(
    r"[ -](\d+x)?([\d.]+B(-A[\d.]+B)?|A[\d.]+B|small|medium|large|base|big|xxlarge|X?XL|Jumbo|Air)( v[\d.]+)?$", re.I
)
_POSITIONS = {"t5": "relative", "transformer_xl": "relative", "none": "none"}
_LOCAL = ("sliding_window", "interleaved", "pattern")

# The columns that claims and trends may name, in the order of tables/systems.csv.
CHOICES = (
    *(
        "norm",
        "norm_position",
        "activation",
        "gated",
        "position",
        "heads",
        "local_layers",
        "block_layout",
        "linear_bias",
    ),
    *("tied", "qk_norm", "soft_cap"),
)
SIZES = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "context_length")
RATIOS = ("ff_ratio", "heads_width", "aspect_ratio")
TRAINING = ("dropout", "weight_decay")
EXPERTS = ("n_experts", "experts_used", "shared_experts")
FIRST = ("system", "release", "year", "kind", "built", "stands_for_release", "in_lecture_table", "params", "announced")
COLUMNS = (*FIRST, *CHOICES, *SIZES, *RATIOS, *TRAINING, *EXPERTS, "not_published", "source", "training_source")


class Regularisation(Settings):
    """Dropout and weight decay of the releases `of`, null if not known, and the grade of the source (lmablate/claims)."""

    of: list[str]
    dropout: float | None = None
    weight_decay: float | None = None
    source: str
    grade: Literal["V1", "V2", "V3", "V4", "R", "U"]


class Extras(Settings):
    """The content of systems.yaml."""

    lecture_table: Annotated[list[str], Field(min_length=1)]
    not_published: dict[str, list[str]]
    released: dict[str, str]
    training: list[Regularisation]


@cache
def extras() -> Extras:
    """Return the checked systems.yaml. Raises ConfigError."""
    import yaml

    try:
        return Extras.model_validate(yaml.safe_load(FILE.read_text()))
    except ValidationError as error:
        raise ConfigError(f"{FILE.name}: {error}") from error


def systems() -> list[Row]:
    """Return one row per system with the keys COLUMNS, the oldest first; None if unknown or not applicable. Raises ConfigError."""
    more = extras()
    rows = [_of_preset(path) for path in sorted((CONF_DIR / "preset").glob("*.yaml"))]
    for row in rows:
        row["release"] = release_of(row["system"])
        for column in more.not_published.get(row["system"], ()):
            row[column] = None
        row["not_published"] = ", ".join(more.not_published.get(row["system"], ()))
        row["in_lecture_table"] = row["system"] in more.lecture_table
        _add_training(row, more.training)
        _add_ratios(row)
    largest = {row["release"]: max((r for r in rows if r["release"] == row["release"]), key=_params) for row in rows}
    for row in rows:
        row["stands_for_release"] = largest[row["release"]] is row
    ordered = sorted(rows, key=lambda row: (row["year"], row["release"], row["params"]))
    return [{column: row.get(column) for column in COLUMNS} for row in ordered]


def _params(row: Row) -> int:
    return int(row["params"])


def release_of(system: str) -> str:
    """Return a system's name without its size: ``LLaMA-2 70B`` gives ``LLaMA-2``."""
    return _SIZE.sub("", system)


@cache
def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text())


def _of_preset(path: Path) -> Row:
    file = _read(path)
    preset = file["preset"]
    chosen = {key.removeprefix("override /"): option for entry in file["defaults"] for key, option in entry.items()}
    settings: Mapping[str, Mapping[str, Any]] = preset["settings"]
    model, stability = settings["model"], settings.get("stability", {})
    kv_heads = model.get("n_kv_heads") or model["n_heads"]
    row = {key: model.get(key) for key in ("n_layers", "d_model", "n_heads", "d_ff", "context_length")}
    position = _POSITIONS.get(chosen["posemb"], chosen["posemb"].partition("_")[0])
    return row | {
        "system": preset["system"], "year": preset["year"], "built": path.stem, "source": preset["source"],
        **_kind(chosen, settings),
        "params": preset["published_params"], "announced": preset["announced"], "vocab_size": preset["vocab_size"],
        "norm": chosen["norm"], "norm_position": chosen["norm_position"], "block_layout": _layout(chosen["block_layout"]),
        "activation": _activation(chosen["activation"]), "gated": preset["gated"], "position": position,
        "heads": "mla" if chosen["attention"] == "mla" else _heads(model["n_heads"], kv_heads),
        "local_layers": chosen["attention"] in _LOCAL, "linear_bias": _bias(model), "tied": model["tie_embeddings"],
        "qk_norm": chosen["stability"] in ("qk_norm", "qkv_norm", "all") or bool(stability.get("qk_norm")),
        "soft_cap": chosen["stability"] in ("soft_cap", "all"),
        "n_kv_heads": kv_heads,
        "head_dim": settings.get("attention", {}).get("v_head_dim") or model.get("head_dim") or model["d_model"] // model["n_heads"],
    }  # fmt: skip


def _kind(chosen: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return the kind of a system and, for a mixture, its experts."""
    if settings["model"].get("n_encoder_layers"):
        return {"kind": "encoder-decoder"}
    if chosen.get("ffn", "dense") == "dense":
        return {"kind": "encoder" if chosen.get("objective") in ("mlm", "rtd") else "decoder"}
    ffn = {**_read(CONF_DIR / "ffn" / f"{chosen['ffn']}.yaml"), **settings.get("ffn", {})}
    return {
        "kind": "mixture",
        "n_experts": ffn["n_experts"],
        "experts_used": ffn["k"],
        "shared_experts": ffn["shared"] or 0,
    }


def _heads(n_heads: int, n_kv_heads: int) -> str:
    if n_kv_heads == n_heads:
        return "mha"
    return "mqa" if n_kv_heads == 1 else "gqa"


def _activation(option: str) -> str:
    """Return an option's function; both forms of GELU count as one."""
    return option.removesuffix("_tanh")


def _layout(option: str) -> str:
    return "parallel" if option.startswith("parallel") else option


def _bias(model: Mapping[str, Any]) -> str:
    """Return ``all``, ``some`` or ``none``: how many linear layers of a block have a bias."""
    named = {model.get(key) for key in ("qkv_bias", "out_bias", "mlp_bias")} - {None}
    both = {bool(model["bias"]), *named} if len(named) < 3 else named
    return "some" if len(both) > 1 else "all" if both == {True} else "none"


def _add_training(row: Row, known: Sequence[Regularisation]) -> None:
    row["training_source"] = ""
    for one in known:
        if row["release"] in one.of:
            row |= {"dropout": one.dropout, "weight_decay": one.weight_decay}
            row["training_source"] = f"{one.source} ({one.grade})"


def _add_ratios(row: Row) -> None:
    """Add d_ff / d_model (not for experts, of which a token sees several), the width of all heads over d_model, and d_model / layers."""
    row["ff_ratio"] = None if row["kind"] == "mixture" else row["d_ff"] / row["d_model"]
    row["heads_width"] = row["n_heads"] * row["head_dim"] / row["d_model"]
    row["aspect_ratio"] = row["d_model"] / row["n_layers"]


def by_year(table: Sequence[Row], column: str, *, releases: bool = True) -> list[Row]:
    """Return how often each option of `column` was chosen in each year: ``{year, n, unknown, <option>: count, ...}``.

    `releases` counts each release once, by its largest system."""
    rows = [row for row in table if row["stands_for_release"] or not releases]
    options = sorted({value_text(row[column]) for row in rows if row[column] is not None})
    out = []
    for year in sorted({row["year"] for row in rows}):
        known = Counter(value_text(row[column]) for row in rows if row["year"] == year and row[column] is not None)
        total = sum(row["year"] == year for row in rows)
        counts = {option: known[option] for option in options}
        out.append({"year": year, "n": total, "unknown": total - sum(counts.values()), **counts})
    return out


def value_text(value: Any) -> str:
    """Return a value as the tables show it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
