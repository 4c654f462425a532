"""Define the typed configuration of training: objective, optimizer, schedule, steps, and runtime."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmablate.core.settings import Settings
from lmablate.schema.types import (
    ClosedFraction,
    Count,
    FiniteFloat,
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    RunId,
    Share,
    TokensPerParam,
)

LENGTHS = ("trainer.steps", "trainer.tokens", "trainer.tokens_per_param")  # keys of which a run has one


def _check_keys(settings: Any, group: str, belongs: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a key that this kind of `group` does not have, or lacks. `belongs`: the kinds that have each key."""
    for key, kinds in belongs.items():
        given = getattr(settings, key) is not None
        if given and settings.kind not in kinds:
            raise ValueError(f"{group}={settings.kind} has no {key}; it belongs to {group}={' or '.join(kinds)}")
        if not given and settings.kind in kinds:
            raise ValueError(f"{group}={settings.kind} needs a {key}")


class ObjectiveSettings(Settings):
    """The training objective (lmablate/objective).

    `prefix_share`: of the context; `prefix_draw`: distribution of the prefix lengths in training; `mask_share`: hidden
    share of the tokens; `random_share`, `kept_share`: of the hidden tokens; `generator_share`: of the model's width;
    `special_id`: the tokenizer's own mask, or the first of its sentinels.
    """

    kind: Literal["causal", "prefix", "mlm", "rtd", "span_corruption"]
    prefix_share: OpenFraction | None = None
    prefix_draw: Literal["uniform", "fixed"] | None = None
    mask_share: OpenFraction | None = None
    random_share: Fraction | None = None
    kept_share: Fraction | None = None
    mean_span: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    generator_share: Share | None = None
    discriminator_weight: PositiveFloat | None = None
    special_id: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> Self:
        belongs = {
            **dict.fromkeys(("prefix_share", "prefix_draw"), ("prefix",)),
            "mask_share": ("mlm", "rtd", "span_corruption"),
            **dict.fromkeys(("random_share", "kept_share"), ("mlm",)),
            "mean_span": ("span_corruption",),
            **dict.fromkeys(("generator_share", "discriminator_weight"), ("rtd",)),
        }
        _check_keys(self, "objective", belongs)
        if self.special_id is not None and self.kind not in belongs["mask_share"]:
            raise ValueError(
                f"objective={self.kind} has no special_id; it belongs to objective={' or '.join(belongs['mask_share'])}"
            )
        if (self.random_share or 0) + (self.kept_share or 0) > 1:
            raise ValueError(
                f"random_share={self.random_share} and kept_share={self.kept_share} are shares of the chosen tokens, more than all "
                "of them together"
            )
        return self


class OptimSettings(Settings):
    """AdamW (Loshchilov and Hutter 2017). Decay acts on matrices only, multiplied by the learning rate or, if
    independent, by the schedule's factor alone; `decay_embeddings=False` spares lookup tables, and None (as stored) is True."""

    kind: Literal["adamw"]
    lr: PositiveFloat
    beta1: Fraction
    beta2: Fraction
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat | None
    decay: Literal["coupled", "independent"] | None = None
    decay_embeddings: bool | None = None


class LrRule(Settings):
    """The learning rate as a rule: ``base (d_model / d)^width_power (tokens / t)^tokens_power (batch / b)^batch_power``,
    where `base` is the best rate at width `d_model`, `tokens` training tokens and `batch_tokens` tokens a step."""

    base: PositiveFloat
    d_model: PositiveInt
    tokens: PositiveFloat
    batch_tokens: PositiveInt
    width_power: FiniteFloat
    tokens_power: FiniteFloat
    batch_power: FiniteFloat

    def lr(self, *, d_model: float, tokens: float, batch_tokens: float) -> float:
        """Return the rate for a model of width `d_model` and a run of `tokens` tokens, to three digits."""
        sizes = (d_model / self.d_model, tokens / self.tokens, batch_tokens / self.batch_tokens)
        powers = (self.width_power, self.tokens_power, self.batch_power)
        return float(f"{self.base * math.prod(size**power for size, power in zip(sizes, powers, strict=True)):.3g}")


class OptimRequest(OptimSettings):
    """The optimizer as requested: `lr` is a number or ``rule``, which takes it from `lr_rule`."""

    lr: LearningRate  # type: ignore[assignment]
    lr_rule: LrRule


class ScheduleSettings(Settings):
    """The learning rate's factor over the steps. `warmup_fraction` is of all steps, and one of the two warmups is null.
    `branches`: shares of the steps at which runs of a common trunk end their decay."""

    kind: Literal["cosine", "wsd", "wsd_branches", "linear", "constant"]
    warmup_steps: NonNegativeInt | None
    warmup_fraction: Fraction | None
    final_fraction: ClosedFraction | None = None
    decay_fraction: ClosedFraction | None = None
    branches: list[Share] | None = None

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> Self:
        wsd = ("wsd", "wsd_branches")
        belongs = {"final_fraction": ("cosine", "linear", *wsd), "decay_fraction": wsd, "branches": ("wsd_branches",)}
        _check_keys(self, "schedule", belongs)
        return self


class _Trainer(Settings):
    """Settings of the trainer. `init_from`: the run whose weights are loaded (runs/init_from.py); None draws weights."""

    batch_size: PositiveInt
    divergence_smoothing: Fraction
    divergence_patience: PositiveInt
    init_from: RunId | None = None


class TrainerRequest(_Trainer):
    steps: Count | None
    tokens: Count | None
    tokens_per_param: TokensPerParam | None = None
    precision: Literal["auto", "fp32", "bf16"]


class TrainerSettings(_Trainer):
    """Final settings of the trainer: `steps` optimizer steps of `batch_size` sequences each."""

    steps: PositiveInt
    precision: Literal["fp32", "bf16"]


class RuntimeSettings(Settings):
    """Settings of how a run is carried out. They do not change the science, and are not hashed."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    compile: bool | Literal["auto"]
    threads: PositiveInt
    workers: PositiveInt | None
    again: bool | None = None  # null, as in runs before the key existed, is false
    exact_gangs: bool | None = None  # null, as in runs before the key existed, is true
    parallel: Literal["ddp", "fsdp2"] | None = None  # for one run on several processes (training/distributed)
    microbatch_size: PositiveInt | None
    log_every: PositiveInt
    evaluations: PositiveInt
    evaluate_lengths: list[PositiveFloat] | None = None
    evaluate_stride: PositiveInt | None = None
    checkpoint_seconds: NonNegativeFloat
    keep_checkpoints: PositiveInt
    on_oom: Literal["fail", "halve_microbatch"] | None = None
    nan_restarts: NonNegativeInt | None = None
    time_limit: PositiveFloat | None = None
    retries: NonNegativeInt | None = None
    gpu_memory: PositiveFloat | None = None
    wandb: Literal["auto", "online", "offline", "disabled"]
    wandb_project: str
    progress: Literal["auto", "live", "lines", "off"]
    cache_dir: str | None
