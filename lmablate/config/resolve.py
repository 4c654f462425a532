"""Resolve a request into final numbers: heads, widths, depth, steps, warmup, seeds, precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lmablate.budget import parameters
from lmablate.config.budget_matching import meet_budget
from lmablate.config.limits import check_schedule, check_seeds
from lmablate.config.sizes import sizes
from lmablate.config.task_constraints import check_task
from lmablate.core.errors import ConfigError
from lmablate.core.hardware import bf16_is_faster
from lmablate.schema.run_config import RunConfig, RunRequest
from lmablate.schema.training_config import LENGTHS, OptimRequest, OptimSettings, ScheduleSettings, TrainerSettings
from lmablate.training.compile import missing_compiler

COMPILE_TOKENS = 1_000_000  # of a run: compiling costs as much as it saves in about as many on one core, and once only

# Keys for one quantity: the one given on the command line replaces the others' defaults, and several are refused.
ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    ("model.d_ff", "model.ff_ratio"),
    LENGTHS,
    ("schedule.warmup_steps", "schedule.warmup_fraction"),
)
# Returns the parameters that trainer.tokens_per_param counts for the runs of one command; None: each run counts its own.
Counted = Callable[[], int | None]


def choose_alternatives(raw: dict[str, Any], given: dict[str, Any]) -> None:
    """Clear the defaults of the alternatives that were not given; `given` maps the keys of the command line to values."""
    for keys in ALTERNATIVES:
        if all(given.get(key) is None for key in keys):
            continue
        for group, name in (key.split(".") for key in keys if key not in given):
            if isinstance(raw.get(group), dict):
                raw[group][name] = None


def choose_draws(raw: dict[str, Any], given: dict[str, Any]) -> None:
    """Turn off the default ``depth_scaled_init`` where ``model.init`` sets the draws of the branches.

    Both together, if given, are refused later (factory.py)."""
    model = raw.get("model")
    if isinstance(model, dict) and model.get("init") is not None and "model.depth_scaled_init" not in given:
        model["depth_scaled_init"] = False


def _exactly_one(group: Any, keys: tuple[str, ...]) -> None:
    values = {key: getattr(group, key.split(".")[1]) for key in keys}
    given = [key for key in keys if values[key] is not None]
    if len(given) != 1:
        number = {0: "neither" if len(keys) == 2 else "none of them", 2: "both"}.get(len(given), "all of them")
        got = " and ".join(f"{key}={values[key]}" for key in given or keys)
        raise ConfigError(f"give {' or '.join(keys)}, not {number}: got {got}")


def resolve(
    request: RunRequest, given: dict[str, Any], reference: Callable[[], RunConfig], counted: Counted | None = None
) -> RunConfig:
    """Return the RunConfig of `request`, with every open number resolved.

    `given` maps the keys of the command line to values. `reference` composes the run whose cost a budget matches.
    `counted` returns the parameters that trainer.tokens_per_param counts; without it they are those of the reference, or
    of the run itself. Raises ConfigError for sizes that do not fit together."""
    for keys, group in zip(ALTERNATIVES, (request.model, request.trainer, request.schedule), strict=True):
        _exactly_one(group, keys)
    check_seeds(request, given)
    _check_rate(request.optim, given)
    _check_scale(request)
    check_task(request)
    common = {name: getattr(request, name) for name in RunConfig.model_fields if name in RunRequest.model_fields}
    common["init_seed"] = request.seed if request.init_seed is None else request.init_seed
    common["data_seed"] = request.seed if request.data_seed is None else request.data_seed
    common["model"] = sizes(request, request.model)
    common["ffn"] = _experts(request)
    if request.diagnostics is not None and not request.diagnostics.on:
        common["diagnostics"] = None
    device = _device(request.runtime.device)
    common["runtime"] = request.runtime.model_copy(
        update={"device": device, "compile": request.runtime.compile is True}
    )
    draft = RunConfig.model_construct(**common)
    count = None if request.trainer.tokens_per_param is None else _count(request, draft, reference, counted)
    draft = draft.model_copy(update={"trainer": _trainer(request, count), "counted_params": count})
    compiled = draft.runtime.model_copy(update={"compile": _compile(request, device, draft.trainer)})
    draft = draft.model_copy(update={"optim": _optim(request.optim, draft), "runtime": compiled})
    cfg = meet_budget(request, draft, given, reference)
    cfg = cfg.model_copy(update=_schedule(request.schedule, cfg.trainer, cfg.optim.lr))
    return cfg.model_copy(update=_final_lr(request.optim, cfg))


def _optim(optim: OptimRequest, cfg: RunConfig) -> OptimSettings:
    """Return the optimizer with the learning rate that its rule gives for the sizes of `cfg`."""
    lr = optim.lr
    if lr == "rule":
        lr = optim.lr_rule.lr(d_model=cfg.model.d_model, tokens=cfg.tokens, batch_tokens=cfg.tokens_per_step)
    decay = None if optim.decay == "coupled" else optim.decay  # the default is stored as null
    tables = None if optim.decay_embeddings else optim.decay_embeddings
    same = {name: getattr(optim, name) for name in OptimSettings.model_fields}
    return OptimSettings(**{**same, "lr": lr, "decay": decay, "decay_embeddings": tables})


def _check_rate(optim: OptimRequest, given: dict[str, Any]) -> None:
    idle = [key for key in given if key.startswith("optim.lr_rule") and optim.lr != "rule"]
    if idle:
        raise ConfigError(f"{idle[0]} has no effect beside optim.lr={optim.lr:g}: leave it out, or give optim.lr=rule")


def _final_lr(optim: OptimRequest, cfg: RunConfig) -> dict[str, Any]:
    """Return the fields that follow from the final sizes, which a budget may have moved."""
    final = _optim(optim, cfg)
    if optim.lr != "rule":
        return {"optim": final}
    sizes = f"model.d_model={cfg.model.d_model}, {cfg.tokens:,} tokens and {cfg.tokens_per_step:,} tokens a step"
    return {"optim": final, "lr_from": f"optim.lr=rule is {final.lr:g} for {sizes}"}


def _count(request: RunRequest, draft: RunConfig, reference: Callable[[], RunConfig], counted: Counted | None) -> int:
    """Return the parameters that trainer.tokens_per_param counts: the command's, else the reference's, else the run's."""
    if counted is not None and (count := counted()) is not None:
        return count
    matched = request.budget is not None and request.budget.match is not None
    return parameters(reference() if matched else draft).active_non_embedding


def by_steps(cfg: RunConfig) -> RunConfig:
    """Return `cfg` with overrides that make the same run alone, where the parameters of another run decided its steps."""
    if cfg.counted_params is None:
        return cfg
    kept = [one for one in cfg.overrides if one.lstrip("+").partition("=")[0] not in LENGTHS]
    return cfg.model_copy(update={"overrides": [*kept, f"trainer.steps={cfg.trainer.steps}"]})


def _experts(request: RunRequest) -> dict[str, Any] | None:
    """Return the feed-forward option, or null for the dense network, which older runs have no key for. Raises ConfigError."""
    from lmablate.model import components

    if request.ffn is None or components.target(request.ffn, "ffn").is_dense:
        return None
    if request.ffn.get("balance_over") == "batch" and request.runtime.microbatch_size is not None:
        raise ConfigError(
            f"ffn.balance_over=batch is a loss of the whole batch, and runtime.microbatch_size={request.runtime.microbatch_size} cuts it "
            "into pieces, whose losses add up to another one: leave out runtime.microbatch_size, or use ffn.balance_over=text"
        )
    return {**request.ffn, "scale": None} if request.ffn.get("scale") == 1 else request.ffn


def _schedule(schedule: ScheduleSettings, trainer: TrainerSettings, lr: float) -> dict[str, Any]:
    """Return the fields that follow from the final number of steps. Raises ConfigError for a warmup that fills the run."""
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = round((schedule.warmup_fraction or 0.0) * trainer.steps)
    check_schedule(schedule, warmup, trainer.steps, lr)
    final = schedule.model_copy(update={"warmup_steps": warmup, "warmup_fraction": None})
    return _longest_branch(final, trainer) if final.kind == "wsd_branches" else {"schedule": final}


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


def _steps(request: RunRequest, counted: int | None) -> int:
    """Return the steps that the trainer asks for; `counted`: the parameters of trainer.tokens_per_param. Raises ConfigError."""
    t = request.trainer
    per_step = t.batch_size * request.model.context_length
    if t.steps is not None:
        return t.steps
    tokens, said = t.tokens or 0, f"trainer.tokens={t.tokens}"
    if t.tokens_per_param is not None:
        assert counted is not None
        tokens = round(t.tokens_per_param * counted)
        said = (
            f"trainer.tokens_per_param={t.tokens_per_param:g} of {counted:,} parameters makes {tokens:,} tokens, which"
        )
    if tokens < per_step:
        raise ConfigError(
            f"{said} is less than one step, which has trainer.batch_size={t.batch_size} times "
            f"model.context_length={request.model.context_length} = {per_step} tokens: give more tokens, or a smaller batch"
        )
    return round(tokens / per_step)


def _trainer(request: RunRequest, counted: int | None) -> TrainerSettings:
    t = request.trainer
    steps = _steps(request, counted)
    precision = _native_precision(request) if t.precision == "auto" else t.precision
    return TrainerSettings(
        steps=steps,
        batch_size=t.batch_size,
        precision=precision,
        divergence_smoothing=t.divergence_smoothing,
        divergence_patience=t.divergence_patience,
        init_from=t.init_from,
    )


def _compile(request: RunRequest, device: str, trainer: TrainerSettings) -> bool:
    """Return whether a run is compiled: with ``runtime.compile=auto`` if it trains on a CPU for `COMPILE_TOKENS` or more.

    Only the command's own tokens decide, before a budget changes them: arms of a comparison have them in common, and what else is
    trained or cached does not move a run. A branch has those of its trunk, and stands for a run of its own, so both stay eager."""
    if request.runtime.compile != "auto":
        return request.runtime.compile
    if device != "cpu" or request.runtime.parallel is not None or request.schedule.kind == "wsd_branches":
        return False
    tokens = trainer.steps * trainer.batch_size * request.model.context_length
    return tokens >= COMPILE_TOKENS and missing_compiler(device) is None


def _longest_branch(schedule: ScheduleSettings, trainer: TrainerSettings) -> dict[str, Any]:
    """Return the fields of the run with the largest budget, an ordinary ``wsd``, and the steps at which the branches end."""
    steps = sorted({round(share * trainer.steps) for share in schedule.branches or ()})
    first = steps[0] if steps else 0
    warmup = schedule.warmup_steps or 0
    if not steps or len(steps) != len(schedule.branches or ()):
        raise ConfigError(
            f"schedule.branches={schedule.branches}: give shares of trainer.steps={trainer.steps} that end at different steps, "
            "e.g. [0.25, 0.5, 1.0]"
        )
    if first - round((schedule.decay_fraction or 0.0) * first) < max(1, warmup):
        raise ConfigError(
            f"schedule.branches={schedule.branches}: the shortest branch ends at step {first}, and its decay "
            f"(schedule.decay_fraction={schedule.decay_fraction}) would begin before the {warmup} steps of warmup are "
            "over: drop it, or train for more steps"
        )
    plain = {"kind": "wsd", "branches": None}
    longest = trainer.model_copy(update={"steps": steps[-1]})
    return {"schedule": schedule.model_copy(update=plain), "trainer": longest, "branches": steps}


def _device(device: str) -> str:
    if device == "mps":
        raise ConfigError(
            "runtime.device=mps: Apple's GPU is not supported, since its kernels were never checked against the CPU's here: "
            "use runtime.device=cpu, which works on macOS"
        )
    if device == "cpu":
        return "cpu"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device=cuda, but torch sees no CUDA GPU: use runtime.device=cpu, or install a CUDA build of torch"
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def _native_precision(request: RunRequest) -> Literal["fp32", "bf16"]:
    """Return bf16 where this machine multiplies bf16 matrices faster than fp32 ones, else fp32."""
    if _device(request.runtime.device) == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    folder = request.runtime.cache_dir
    return "bf16" if bf16_is_faster(Path(folder) if folder else None) else "fp32"
