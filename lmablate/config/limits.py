"""Notices about numbers without an effect, logged once before training.

This is design rule 11 for values. A value that contradicts another is refused where it is resolved (resolve.py, the
components). A value that may be an end point of a grid, such as a window as long as the text, gets a notice here.
`tests/limits_table.py` lists every numeric key with the values at which this happens. A test holds the two together.

Most notices are about keys that the user gave. A default that a short run never reaches is no mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.training.step_time import estimated_seconds

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig, RunRequest
    from lmablate.schema.training_config import ScheduleSettings

log = logging.getLogger(__name__)
Given = frozenset[str]
Notices = Iterator[str]
_logged: set[str] = set()
NEVER = 3.0  # times the estimated length of a run: a longer checkpoint interval never ends


def log_notices(configs: Sequence[RunConfig]) -> None:
    """Log the notices on these runs, each once per command."""
    for cfg in configs:
        for line in notices(cfg):
            if line not in _logged:
                _logged.add(line)
                log.info("%s", line)


def notices(cfg: RunConfig) -> list[str]:
    """Return the notices on the numbers of `cfg` that change nothing. Each begins with its key."""
    given = frozenset(override.lstrip("+").partition("=")[0] for override in cfg.overrides)
    return [line for rule in RULES for line in rule(cfg, given)]


def check_schedule(schedule: ScheduleSettings, warmup: int, steps: int, lr: float) -> None:
    """Raise ConfigError if the warmup fills the run or overlaps the decay.

    `warmup` and `steps` are final numbers of steps."""
    fraction = schedule.warmup_fraction
    shown = (
        f"schedule.warmup_steps={warmup}"
        if fraction is None
        else f"schedule.warmup_fraction={fraction:g} ({warmup} steps)"
    )
    if warmup >= steps:
        raise ConfigError(
            f"{shown} is as long as the run or longer (trainer.steps={steps}): optim.lr={lr:g} would be reached with the last step at "
            f"best, and schedule={schedule.kind} would never begin: give a shorter warmup, or train for more steps"
        )
    exact = warmup if fraction is None else fraction * steps
    decay = (schedule.decay_fraction or 0.0) * steps
    if schedule.kind == "wsd" and exact + decay > steps * (1 + 1e-9) + 0.5:
        raise ConfigError(
            f"{shown} and schedule.decay_fraction={schedule.decay_fraction:g} ({round(decay)} steps) overlap in trainer.steps={steps}: "
            f"give schedule.decay_fraction={1 - exact / steps:.3g} at most, or a shorter warmup"
        )


def check_seeds(request: RunRequest, given: dict[str, Any]) -> None:
    """Raise ConfigError for a seed that `init_seed` and `data_seed` both override."""
    if all(given.get(key) is not None for key in ("seed", "init_seed", "data_seed")):
        raise ConfigError(
            f"seed={request.seed} has no effect beside init_seed={request.init_seed} and data_seed={request.data_seed}, which "
            "override it: leave it out"
        )


def _schedule(cfg: RunConfig, given: Given) -> Notices:
    own, steps = cfg.schedule, cfg.trainer.steps
    warmup, group = own.warmup_steps or 0, f"schedule={own.kind}"
    if "schedule.warmup_steps" in given and warmup == 1:
        yield "schedule.warmup_steps=1: the first step has the whole rate already, so nothing is warmed up"
    if "schedule.warmup_fraction" in given and not warmup:
        yield f"schedule.warmup_fraction is less than a step of trainer.steps={steps}, so nothing is warmed up"
    if own.final_fraction == 1:
        yield f"schedule.final_fraction=1: the rate never falls, and {group} trains as schedule=constant"
        return
    decay = steps - warmup
    if own.kind == "wsd":
        decay = min(decay, round((own.decay_fraction or 0.0) * steps))
    if own.kind != "constant" and decay < 2 <= steps:
        by_fraction = own.kind == "wsd" and steps - warmup > 1
        key = f"schedule.decay_fraction={own.decay_fraction:g}" if by_fraction else f"schedule.warmup_steps={warmup}"
        yield (
            f"{key} of trainer.steps={steps}: the decay begins from the whole rate and is over within a step, so that "
            f"{group} trains as schedule=constant, and schedule.final_fraction has no effect"
        )


def _optim(cfg: RunConfig, given: Given) -> Notices:
    if cfg.optim.decay is not None and cfg.optim.weight_decay == 0:
        yield f"optim.weight_decay=0: nothing decays, and optim.decay={cfg.optim.decay} has no effect"
    if cfg.optim.decay_embeddings is False and cfg.optim.weight_decay == 0:
        yield "optim.weight_decay=0: nothing decays, and optim.decay_embeddings=false has no effect"
    t = cfg.trainer
    if "trainer.divergence_patience" in given and t.divergence_patience > t.steps:
        yield (
            f"trainer.divergence_patience={t.divergence_patience} is more than trainer.steps={t.steps}: a run counts as diverged by a "
            "number that is not finite alone"
        )


def _model(cfg: RunConfig, given: Given) -> Notices:
    m = cfg.model
    if m.context_length == 1:
        yield "model.context_length=1: a token reads itself alone, so attention and posemb have nothing to choose from"
    if "model.segments" in given and (m.segments or 0) > 1:
        yield f"model.segments={m.segments}: every text is of the first kind, so the other rows are never read"
    if "model.head_std" in given and m.head_std is not None and m.tie_embeddings:
        yield f"model.head_std={m.head_std} has no effect with model.tie_embeddings=true: the head is the token table"


def longest_text(cfg: RunConfig) -> int:
    """Return the longest sequence that one stack reads, in tokens. Of two stacks, each reads a part of the text."""
    from lmablate.model.multi_stack import source_length

    length = cfg.model.context_length
    if cfg.model.n_encoder_layers is None:
        return length
    return max(source_length(cfg), length - source_length(cfg))


def _attention(cfg: RunConfig, given: Given) -> Notices:
    option, length = cfg.choices.get("attention"), longest_text(cfg)
    window, pattern = cfg.attention.get("window"), cfg.attention.get("pattern", "l")
    if window is not None and window >= length and "l" in pattern:
        yield (
            f"attention.window={window} is as long as a text (model.context_length={cfg.model.context_length}): in training the layers "
            f"of attention={option} that have a window read everything"
        )
    local, n_layers = cfg.attention.get("local_per_global"), cfg.model.n_distinct_layers or cfg.model.n_layers
    if local is not None and local >= n_layers:
        yield (
            f"attention.local_per_global={local} with model.n_layers={n_layers}: no layer reads everything, so attention={option} is "
            "attention=sliding_window"
        )


def _posemb(cfg: RunConfig, given: Given) -> Notices:
    from lmablate.model.dims import position_shape

    own, shape = cfg.posemb, position_shape(cfg)
    width = shape.head_dim
    if (fraction := own.get("rotary_fraction")) is not None:
        width = int(shape.head_dim * fraction)
        if width != shape.head_dim * fraction:
            yield (
                f"posemb.rotary_fraction={fraction:g} of {shape.head_dim} channels is not whole: {width} of them are turned, as with "
                f"posemb.rotary_fraction={width / shape.head_dim:.4g}"
            )
    if "posemb.rope_theta" in given and width == 2:
        yield f"posemb.rope_theta={own['rope_theta']:g}: a head has one pair of turned channels, which no theta moves"
    for key, idle in (
        ("short_factor", shape.context_length > own.get("original_length", 0)),
        ("long_factor", shape.context_length <= own.get("original_length", 0)),
    ):
        if f"posemb.{key}" in given and key in own and idle:
            kind = key.removesuffix("_factor")
            yield (
                f"posemb.{key} is for {kind} texts, and those of model.context_length={shape.context_length} are not "
                f"(posemb.original_length={own['original_length']}): it has no effect in training"
            )
    exact = own.get("n_buckets", 0) // 2 // (1 + shape.looks_ahead)
    keys = sorted({"posemb.n_buckets", "posemb.max_distance"} & given)
    if keys and "max_distance" in own and shape.context_length <= exact:
        yield (
            f"{keys[0]}={own[keys[0].removeprefix('posemb.')]}: every distance within model.context_length={shape.context_length} has a "
            f"bucket of its own, so that neither posemb.max_distance nor posemb.n_buckets beyond {2 * exact} has an effect"
        )


def _ffn(cfg: RunConfig, given: Given) -> Notices:
    own = cfg.ffn or {}
    n, k, capacity = own.get("n_experts"), own.get("k"), own.get("capacity_factor")
    if n is None:
        return
    if n == 1:
        yield f"ffn.n_experts=1: every token meets the one expert, and ffn={cfg.choices.get('ffn')} routes nothing"
    elif k == n:
        losses = [f"ffn.{key}" for key in ("balance_loss", "bias_rate") if own.get(key) is not None]
        also = f", and {' and '.join(losses)} has no effect" if losses else ""
        yield f"ffn.k={k} of ffn.n_experts={n}: every token meets every expert, so none is chosen{also}"
    if capacity is not None and capacity * (k or 1) >= n:
        what = "no token is dropped" if k else "every expert takes every token, so none is chosen"
        yield f"ffn.capacity_factor={capacity:g} with ffn.n_experts={n}: {what}"


def _objective(cfg: RunConfig, given: Given) -> Notices:
    from lmablate.objective.masking import count

    own, length = cfg.objective, cfg.model.context_length
    if own.mask_share is None:
        return
    if own.kind == "span_corruption":
        from lmablate.objective.span_corruption import layout

        shape = layout(length, own.mask_share, own.mean_span or 1.0)
        length = shape.text
        if "objective.mean_span" in given and (own.mean_span or 1.0) > shape.noise:
            yield (
                f"objective.mean_span={own.mean_span:g}: {shape.noise} tokens of a text of {length} are hidden, which is one span, "
                "however long spans are to be"
            )
    hidden, wanted = count(own.mask_share, length), own.mask_share * length
    if not wanted - 0.5 <= hidden <= wanted + 0.5:
        end = "fewest" if hidden > wanted else "most"
        yield (
            f"objective.mask_share={own.mask_share:g} of {length} tokens: {hidden} are hidden ({hidden / length:.2g}), the {end} that "
            "can be"
        )


def _data(cfg: RunConfig, given: Given) -> Notices:
    examples, read = getattr(cfg.data, "n_examples", None), cfg.trainer.steps * cfg.trainer.batch_size
    if examples is not None and examples >= read:
        yield (
            f"data.n_examples={examples}: a run reads {read} (trainer.steps={cfg.trainer.steps} of "
            f"trainer.batch_size={cfg.trainer.batch_size}), so none comes twice, and nothing is limited"
        )


def _runtime(cfg: RunConfig, given: Given) -> Notices:
    runtime, t = cfg.runtime, cfg.trainer
    if (runtime.microbatch_size or 0) >= t.batch_size:
        yield f"runtime.microbatch_size={runtime.microbatch_size}: the whole batch (trainer.batch_size={t.batch_size}) is one pass"
    for key in ("log_every", "evaluations"):
        value = getattr(runtime, key)
        if f"runtime.{key}" in given and value > t.steps:
            what = (
                "records come with evaluations and the last step alone"
                if key == "log_every"
                else f"there are {t.steps}, one a step"
            )
            yield f"runtime.{key}={value} is more than trainer.steps={t.steps}: {what}"
    longest = max(runtime.evaluate_lengths or [0]) * cfg.model.context_length
    if "runtime.evaluate_stride" in given and (runtime.evaluate_stride or 0) >= longest:
        yield f"runtime.evaluate_stride={runtime.evaluate_stride} is as long as the longest window, so none slides"
    if runtime.gpu_memory is not None and runtime.device == "cpu":
        yield f"runtime.gpu_memory={runtime.gpu_memory:g} has no effect on the CPU"
    interval = runtime.checkpoint_seconds if "runtime.checkpoint_seconds" in given else 0
    if interval and (guess := estimated_seconds(cfg)) * NEVER < interval:
        yield (
            f"runtime.checkpoint_seconds={interval:g}: a run of about {guess:.0f} s has no checkpoint before its end, "
            "and one that is killed begins anew"
        )


def _diagnostics(cfg: RunConfig, given: Given) -> Notices:
    diagnostics, steps = cfg.diagnostics, cfg.trainer.steps
    if diagnostics is not None and "diagnostics.every" in given and (diagnostics.every or 0) > steps:
        yield f"diagnostics.every={diagnostics.every} is more than trainer.steps={steps}: measured before the first step and after the last"


RULES: tuple[Callable[[RunConfig, Given], Notices], ...] = (
    *(_schedule, _optim, _model, _attention, _posemb, _ffn, _objective, _data, _runtime, _diagnostics),
)
