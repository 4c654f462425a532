"""From what was asked for to final numbers: heads, widths, depth, steps, warmup, seeds, precision."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lmablate.budget import ff_width, matched_width, parameters
from lmablate.config.schema import ModelRequest, ModelSettings, RunConfig, RunRequest, TrainerSettings
from lmablate.errors import ConfigError

# Two ways to say one thing: the one given on the command line replaces the other's default, and both are refused.
ALTERNATIVES = (
    ("model.d_ff", "model.ff_ratio"),
    ("trainer.steps", "trainer.tokens"),
    ("schedule.warmup_steps", "schedule.warmup_fraction"),
)


def choose_alternatives(raw: dict[str, Any], given: dict[str, Any]) -> None:
    """Clear the default of the alternative that was not asked for; `given` maps explicit override keys to values."""
    for pair in ALTERNATIVES:
        asked = [key for key in pair if given.get(key) is not None]
        if len(asked) == 1:
            other = pair[1 - pair.index(asked[0])]
            group, name = other.split(".")
            if isinstance(raw.get(group), dict) and other not in given:
                raw[group][name] = None


def _exactly_one(group: Any, pair: tuple[str, str]) -> None:
    names = [key.split(".")[1] for key in pair]
    set_ = [name for name in names if getattr(group, name) is not None]
    if len(set_) != 1:
        got = " and ".join(f"{key}={getattr(group, key.split('.')[1])}" for key in pair)
        raise ConfigError(f"give {pair[0]} or {pair[1]}, not {'both' if set_ else 'neither'}: got {got}")


def resolve(request: RunRequest, given: dict[str, Any]) -> RunConfig:
    """Close every open number of `request`. Raises ConfigError for sizes that do not fit together."""
    for pair, group in zip(ALTERNATIVES, (request.model, request.trainer, request.schedule), strict=True):
        _exactly_one(group, pair)
    _check_scale(request)
    common = {name: getattr(request, name) for name in RunConfig.model_fields if name in RunRequest.model_fields}
    common["init_seed"] = request.seed if request.init_seed is None else request.init_seed
    common["data_seed"] = request.seed if request.data_seed is None else request.data_seed
    common["model"] = _sizes(request, request.model)
    common["trainer"] = _trainer(request)
    schedule = request.schedule
    if schedule.warmup_steps is None:
        warmup = round((schedule.warmup_fraction or 0.0) * common["trainer"].steps)
        common["schedule"] = schedule.model_copy(update={"warmup_steps": warmup, "warmup_fraction": None})
    common["runtime"] = request.runtime.model_copy(update={"device": _device(request.runtime.device)})
    cfg = RunConfig.model_construct(**common)
    if request.aspect_ratio.ratio is not None:
        cfg = _solve_aspect_ratio(request, cfg, given)
    return cfg


def _check_scale(request: RunRequest) -> None:
    scale = request.model.gated_scale
    if scale is not None and not request.activation.gated:
        raise ConfigError(
            f"model.gated_scale={scale} sets the width of a gated FFN, and activation={request.choices.get('activation')} does not gate: "
            "leave it out, or choose a gated activation such as swiglu"
        )
    if scale is not None and request.model.d_ff is not None:
        raise ConfigError(
            f"model.gated_scale={scale} has no effect beside model.d_ff={request.model.d_ff}: give one of them"
        )


def _heads(m: ModelRequest) -> tuple[int, int, int]:
    """(n_heads, n_kv_heads, head_dim) from what was given of them."""
    n_heads, head_dim = m.n_heads, m.head_dim
    if n_heads is None and head_dim is None:
        raise ConfigError("give model.n_heads or model.head_dim (or both)")
    if n_heads is None:
        assert head_dim is not None
        if m.d_model % head_dim:
            raise ConfigError(
                f"model.d_model={m.d_model} is not a multiple of model.head_dim={head_dim}: give model.n_heads as well"
            )
        n_heads = m.d_model // head_dim
    if head_dim is None:
        if m.d_model % n_heads:
            near = max(1, m.d_model // n_heads) * n_heads
            raise ConfigError(
                f"model.d_model={m.d_model} is not a multiple of model.n_heads={n_heads}: "
                f"use model.d_model={near} or {near + n_heads}, or give model.head_dim, which need not be d_model / n_heads"
            )
        head_dim = m.d_model // n_heads
    n_kv_heads = m.n_kv_heads or n_heads
    if n_kv_heads > n_heads or n_heads % n_kv_heads:
        divisors = [k for k in range(1, n_heads + 1) if n_heads % k == 0]
        raise ConfigError(
            f"model.n_kv_heads={n_kv_heads} does not divide model.n_heads={n_heads}: allowed are {', '.join(map(str, divisors))}"
        )
    return n_heads, n_kv_heads, head_dim


def _sizes(request: RunRequest, m: ModelRequest) -> ModelSettings:
    n_heads, n_kv_heads, head_dim = _heads(m)
    d_ff = m.d_ff or ff_width(
        m.d_model, ff_ratio=m.ff_ratio or 0.0, gated=request.activation.gated, bias=m.bias, gated_scale=m.gated_scale
    )
    same = {name: getattr(m, name) for name in ModelSettings.model_fields if name in ModelRequest.model_fields}
    sizes = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "d_ff": d_ff}
    return ModelSettings(**{**same, **sizes, "vocab_size": getattr(request.tokenizer, "vocab_size", None) or 1})


def _trainer(request: RunRequest) -> TrainerSettings:
    t = request.trainer
    per_step = t.batch_size * request.model.context_length
    steps = t.steps if t.steps is not None else max(1, round((t.tokens or 0) / per_step))
    precision = _native_precision(_device(request.runtime.device)) if t.precision == "auto" else t.precision
    return TrainerSettings(
        steps=steps,
        batch_size=t.batch_size,
        precision=precision,
        divergence_smoothing=t.divergence_smoothing,
        divergence_patience=t.divergence_patience,
    )


def _device(asked: str) -> str:
    if asked == "mps":
        raise ConfigError(
            "runtime.device=mps: Apple's GPU is not supported, since its kernels were never checked against the CPU's here: "
            "use runtime.device=cpu, which works on macOS"
        )
    if asked == "cpu":
        return "cpu"
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device=cuda, but torch sees no CUDA GPU: use runtime.device=cpu, or install a CUDA build of torch"
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def _native_precision(device: str) -> Literal["fp32", "bf16"]:
    """bf16 where the processor has instructions for it; elsewhere it is emulated and slower than fp32."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    cpu = torch.cpu
    return "bf16" if cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported() else "fp32"


def _solve_aspect_ratio(request: RunRequest, reference: RunConfig, given: dict[str, Any]) -> RunConfig:
    """d_model and n_layers for ``d_model / n_layers = ratio`` at the parameters of the reference shape.

    The depth is the whole number that comes nearest the ratio, the width follows from the budget in steps that keep the
    head count, and d_ff takes up what the width's step leaves, so that non-embedding parameters agree within 1 %.
    """
    ratio = request.aspect_ratio.ratio
    assert ratio is not None
    word = request.choices.get("aspect_ratio", "?")
    for key in ("model.d_model", "model.n_layers", "model.d_ff"):
        if given.get(key) is not None:
            raise ConfigError(
                f"aspect_ratio={word} solves {key}, and {key}={given[key]} was given too: drop one of them "
                "(the size to match comes from the model group, e.g. model=small)"
            )
    budget = parameters(reference).non_embedding
    m = request.model
    if m.n_heads is None:
        step = m.head_dim or 8  # whole heads of the given width
    else:
        step = 8 if m.head_dim is not None else math.lcm(2 * m.n_heads, 4)  # an even width for every head

    def at(d_model: int, n_layers: int, d_ff: int | None = None) -> RunConfig:
        asked = m.model_copy(update={"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff})
        return reference.model_copy(update={"model": _sizes(request, asked)})

    def width(n_layers: int) -> int:
        candidates: Sequence[int] = range(step, 64 * reference.model.d_model, step)
        low, high = 0, len(candidates) - 1  # parameters grow with the width
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (middle + 1, high)
                if parameters(at(candidates[middle], n_layers)).non_embedding < budget
                else (low, middle)
            )
        near = [candidates[i] for i in (low - 1, low) if i >= 0]
        return min(near, key=lambda d: abs(math.log(parameters(at(d, n_layers)).non_embedding / budget)))

    guess = max(1, round((budget / (12 * ratio**2)) ** (1 / 3)))
    depths = range(max(1, guess // 2), 2 * guess + 2)
    n_layers = min(depths, key=lambda n: abs(math.log(width(n) / n / ratio)))
    d_model = width(n_layers)
    if (
        abs(math.log(d_model / n_layers / ratio)) > math.log(2) / 2
    ):  # nearer to another option's ratio than to this one's
        raise ConfigError(
            f"aspect_ratio={word}: with {budget:,} non-embedding parameters the nearest whole number of layers gives d_model={d_model}, "
            f"n_layers={n_layers}, a ratio of {d_model / n_layers:.0f}: choose a larger model (model=small) or another ratio"
        )

    def params_of(d_ff: int) -> int:
        return parameters(at(d_model, n_layers, d_ff)).non_embedding

    d_ff = matched_width(budget, params_of, _linear_guess(budget, at(d_model, n_layers).model.d_ff, params_of))
    solved = at(d_model, n_layers, d_ff)
    if abs(parameters(solved).non_embedding - budget) > 0.01 * budget:
        raise ConfigError(
            f"aspect_ratio={word}: no shape within 1 % of {budget:,} non-embedding parameters; the nearest is d_model={d_model}, "
            f"n_layers={n_layers}, d_ff={d_ff} with {parameters(solved).non_embedding:,}: choose a larger model or another ratio"
        )
    return solved


def _linear_guess(target: float, rough: int, params_of: Callable[[int], int]) -> float:
    """Parameters are linear in d_ff, so two points give the width that meets the target."""
    slope = (params_of(2 * rough) - params_of(rough)) / rough
    return max(4.0, rough + (target - params_of(rough)) / slope)
