"""Groups ``preset`` and ``shrink``: the sizes and settings of a published system, at its own size or at a trainable one.

A preset's file overrides the choices of the axis groups through Hydra, and lists under ``settings`` what to set within
them. The command line wins over both: a given key is left alone, and an option chosen there comes with its own settings.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from lmablate.core.errors import ConfigError
from lmablate.core.settings import Settings

TOKENS = ("window", "original_length")  # settings in tokens, which shrink with the context
LAYERS = ("first_dense",)  # in layers, which shrink with the depth
WIDTHS = ("q_rank", "kv_rank")  # in channels, which shrink with the width
OF_A_HEAD = ("rope_head_dim", "v_head_dim")  # in channels, which shrink with those of a head
LEAST_HEAD_DIM = 8
NEAR = 0.03  # of the width of all heads over d_model, below which a shape counts as the published one


class Published(Settings):
    """The content of a file of conf/preset.

    `announced` is the parameter count that the authors give, often rounded. `published_params` is the count of the released
    shape. `uncounted` is how many learned numbers the shape here has more (negative: fewer) than that count. `unconfirmed` says
    which sizes are uncertain.
    """

    system: str
    year: int
    source: str
    announced: float
    published_params: int
    uncounted: int | None = None
    unconfirmed: str | None = None
    vocab_size: int
    gated: bool
    width_scaled: bool | None = None  # scores are scaled by 1 / sqrt(d_model / n_heads), and heads have another width
    settings: dict[str, dict[str, Any]]


def with_preset(raw: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return `raw`, the values of a request, with those of its preset.

    `given` maps the keys of the command line to their values. Raises ConfigError."""
    name, shrink = raw["choices"].get("preset"), raw["choices"].get("shrink")
    rest = {key: value for key, value in raw.items() if key != "preset"}
    if name is None:
        if shrink is not None:
            raise ConfigError(
                f"shrink={shrink} shrinks a published system: add preset=<system> (lmablate presets lists them), "
                f"or use model={shrink}"
            )
        return rest
    preset = published(name, raw.get("preset"))
    if shrink is None and "model" in given:
        raise ConfigError(
            f"preset={name} brings its own sizes, and model={given['model']} sets them too: drop one of them, or shrink the preset "
            f"to that size with shrink={given['model']}"
        )
    sizes = dict(preset.settings.get("model", {}))
    if "attention" in given:  # the options of attention set n_kv_heads themselves
        sizes.pop("n_kv_heads", None)
    factors: dict[str, float] = {}
    if shrink is None:
        rest["published_vocab_size"] = preset.vocab_size
    else:
        sizes = _shrunk(sizes, raw, given, _step(preset.settings.get("posemb", {}).get("rotary_fraction")))
    rest["model"] = _given_first("model", raw["model"], sizes | _ffn(preset, raw, given, shrink), given)
    if shrink is not None:
        factors = _factors(raw["model"], rest["model"], preset.settings["model"])
    for group, values in preset.settings.items():
        if group != "model" and group not in given:
            # An id of the published tokenizer has no meaning in another one.
            kept = {key: v for key, v in values.items() if shrink is None or key != "special_id"}
            fitted = {key: v if v is None else _in_proportion(key, v, factors) for key, v in kept.items()}
            rest[group] = _given_first(group, raw[group], fitted, given)
    if shrink is not None and preset.width_scaled and "attention" not in given and "attention.scale" not in given:
        rest["attention"]["scale"] = (rest["model"]["d_model"] / rest["model"]["n_heads"]) ** -0.5
    return rest


def _factors(target: dict[str, Any], model: dict[str, Any], whole: dict[str, Any]) -> dict[str, float]:
    """Return the factor by which each setting shrinks that is counted in tokens, layers or channels."""
    tokens, depth = (target[key] / whole[key] for key in ("context_length", "n_layers"))
    width, head = model["d_model"] / whole["d_model"], head_width(model) / head_width(whole)
    counted = ((TOKENS, tokens), (LAYERS, depth), (WIDTHS, width), (OF_A_HEAD, head))
    return {key: factor for keys, factor in counted for key in keys}


def _in_proportion(key: str, value: Any, factors: dict[str, float]) -> Any:
    if key not in factors:
        return value
    step = 4 if key in (*WIDTHS, *OF_A_HEAD) else 1
    return max(step, step * round(value * factors[key] / step))


def published(name: str, node: Any) -> Published:
    """Return the checked content of a preset's file. Raises ConfigError if a field is missing or wrong."""
    try:
        return Published.model_validate(node)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"preset={name}: its file has preset.{key}: {first['msg'].lower()}") from None


def _given_first(group: str, old: dict[str, Any], new: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return old | {key: value for key, value in new.items() if f"{group}.{key}" not in given}


def _ffn(preset: Published, raw: dict[str, Any], given: dict[str, Any], shrink: str | None) -> dict[str, Any]:
    """Return the published d_ff, or, where another size moves, the ratio of a plain FFN with its parameters (see ff_width)."""
    sizes = preset.settings["model"]
    same = raw["activation"]["gated"] == preset.gated and raw["aspect_ratio"]["ratio"] is None
    if same and shrink is None and given.get("model.gated_scale") is None:
        return {"d_ff": sizes["d_ff"], "ff_ratio": None}
    return {"d_ff": None, "ff_ratio": sizes["d_ff"] / sizes["d_model"] * (1.5 if preset.gated else 1.0)}


def _shrunk(sizes: dict[str, Any], raw: dict[str, Any], given: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the published switches at the width, depth and context of the model group, with heads in the published ratios and a
    multiple of `step` channels wide."""
    target = raw["model"]
    kept = {key: value for key, value in sizes.items() if key not in ("d_model", "n_layers", "context_length", "d_ff")}
    width = target["d_model"] * sizes["n_heads"] * head_width(sizes) / sizes["d_model"]  # of all heads together
    shared = sizes["n_heads"] // (sizes.get("n_kv_heads") or sizes["n_heads"])  # query heads to a key/value head
    one = shared == sizes["n_heads"]
    fixed = target["n_heads"] if given.get("model.n_heads") is not None else None
    if "attention" in given:  # the option sets the number of key/value heads
        n_heads = _heads(width, target["n_heads"], target["n_kv_heads"] or 1, step) if fixed is None else fixed
    elif one or shared == 1:
        n_heads = _heads(width, target["n_heads"], 1, step) if fixed is None else fixed
    else:
        while shared > 2 and width / (2 * shared) < LEAST_HEAD_DIM:
            shared -= 1
        n_heads = _heads(width, max(target["n_heads"], 2 * shared), shared, step) if fixed is None else fixed
        kept["n_kv_heads"] = max(1, n_heads // shared)
    head_dim = _head_dim(width, n_heads, step)
    if sizes.get("n_encoder_layers"):
        kept["n_encoder_layers"] = max(1, round(target["n_layers"] * sizes["n_encoder_layers"] / sizes["n_layers"]))
    if sizes.get("embedding_dim"):
        kept["embedding_dim"] = max(2, 2 * round(target["d_model"] * sizes["embedding_dim"] / sizes["d_model"] / 2))
    return kept | {"n_heads": n_heads, "head_dim": None if n_heads * head_dim == target["d_model"] else head_dim}


def head_width(sizes: dict[str, Any]) -> int:
    """Return the channels of a head, given or d_model / n_heads."""
    return sizes.get("head_dim") or sizes["d_model"] // sizes["n_heads"]


def _step(fraction: float | None) -> int:
    """Return what a head's channels are a multiple of: 4, or as many as leave an even number of turned ones."""
    turned = Fraction(fraction or 1.0).limit_denominator(64)
    return next(step for step in range(4, 4 * 64 + 1, 4) if step * turned % 2 == 0)


def _heads(width: float, least: int, group: int, step: int) -> int:
    """Return how many heads are `width` channels wide together: a multiple of `group`, from `least` to about twice as many.

    The first that meets the width wins, else the first that is near it, else the nearest."""

    def error(n: int) -> float:
        return abs(n * _head_dim(width, n, step) / width - 1)

    first = -(-least // group) * group
    tried = [n for n in range(first, 2 * first + 1, group) if width / n >= LEAST_HEAD_DIM] or [first]
    return next((n for limit in (0.0, NEAR) for n in tried if error(n) <= limit), min(tried, key=error))


def _head_dim(width: float, n_heads: int, step: int) -> int:
    """Return the width of a head, the multiple of `step` that is nearest."""
    return max(step, step * round(width / n_heads / step))
