"""The typed configuration: what a user asks for (RunRequest) and what is trained (RunConfig).

Types live here, values in ``conf/``. A RunRequest may leave derived numbers open (null); ``resolve.py`` closes them and
makes the RunConfig, in which every size is final.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lmablate.data.settings import DataSettings, TokenizerSettings
from lmablate.diagnostics.settings import DiagnosticsSettings
from lmablate.settings import Settings

SCHEMA_VERSION = 1  # of the shape of config.yaml


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


def _names_a_target(part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("_target_"), str):
        raise ValueError("needs a _target_: the dotted path of a class or function")
    return part


# A swappable part: its keys are checked against the signature of its target, in model/parts.py.
Part = Annotated[dict[str, Any], AfterValidator(_names_a_target)]


class Biases(NamedTuple):
    """Whether each kind of linear layer has one."""

    qkv: bool
    out: bool
    mlp: bool
    head: bool


class _Model(Settings):
    """What is final as it is asked for: `context_length` in tokens, `init_std` of the matrices' normal draws.

    `qkv_bias`, `out_bias` and `mlp_bias` follow `bias` where they are None; None of the others is off.
    """

    d_model: PositiveInt
    n_layers: PositiveInt
    context_length: PositiveInt
    tie_embeddings: bool
    bias: bool
    dropout: Fraction
    init_std: PositiveFloat
    depth_scaled_init: bool
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    head_bias: bool | None = None
    embedding_scale: PositiveFloat | Literal["sqrt_d_model"] | None = None
    embedding_norm: bool | None = None
    final_norm: bool | None = None
    logit_scale: PositiveFloat | Literal["inverse_sqrt_d_model"] | None = None
    init: Literal["xavier"] | None = None
    n_encoder_layers: PositiveInt | None = None
    n_distinct_layers: PositiveInt | None = None
    embedding_dim: PositiveInt | None = None
    segments: PositiveInt | None = None
    head_transform: Literal[True] | None = None

    @property
    def biases(self) -> Biases:
        qkv, out, mlp = (self.bias if own is None else own for own in (self.qkv_bias, self.out_bias, self.mlp_bias))
        return Biases(qkv, out, mlp, bool(self.head_bias))


class ModelRequest(_Model):
    """Sizes as asked for: null is solved from the others."""

    n_heads: PositiveInt | None
    n_kv_heads: PositiveInt | None
    head_dim: PositiveInt | None
    d_ff: PositiveInt | None
    ff_ratio: PositiveFloat | None
    gated_scale: PositiveFloat | None


class ModelSettings(_Model):
    """Final sizes: `d_model`, `d_ff` and `head_dim` in channels."""

    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    d_ff: PositiveInt
    vocab_size: PositiveInt


class ActivationSettings(Settings):
    gated: bool
    fn: Part


class StabilitySettings(Settings):
    """Each null is off. `qk_norm_over`: one norm over all heads of a token, not one over each head (OLMo 2, arXiv
    2501.00656, section 3.3); it goes for `v_norm` too."""

    qk_norm: Part | None
    qk_norm_over: Literal["all_heads"] | None = None
    v_norm: Part | None = None
    z_loss: PositiveFloat | None
    attention_soft_cap: PositiveFloat | None
    final_soft_cap: PositiveFloat | None


class AspectRatioSettings(Settings):
    ratio: PositiveFloat | None


class BudgetSettings(Settings):
    """What a run has in common with its reference, the size that is free to meet it (`knob`), and words that are added to
    the reference (see matching.py). Null matches nothing."""

    match: Literal["params", "params_non_embedding", "flops", "kv_cache", "wall_time"] | None = None
    knob: Literal["d_ff", "d_model", "d_ff+d_model", "n_layers", "head_dim"] | None = None
    reference: list[str] | None = None


class ObjectiveSettings(Settings):
    """What a model is trained to do (lmablate/objective). `prefix_share`: of the context; `prefix_draw`: how long the prefixes
    of training are. `mask_share`: of the tokens of a text, hidden; `random_share` and `kept_share`: of these; `generator_share`:
    of the model's width; `special_id`: the tokenizer's own mask, or the first of its sentinels."""

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
        for key, kinds in belongs.items():
            given = getattr(self, key) is not None
            if given and self.kind not in kinds:
                raise ValueError(f"objective={self.kind} has no {key}; it belongs to objective={' or '.join(kinds)}")
            if not given and self.kind in kinds:
                raise ValueError(f"objective={self.kind} needs a {key}")
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
    """AdamW (Loshchilov and Hutter 2017): decay acts on matrices only, and is multiplied by the learning rate or, where it is
    independent, by the schedule's factor alone."""

    kind: Literal["adamw"]
    lr: PositiveFloat
    beta1: Fraction
    beta2: Fraction
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat | None
    decay: Literal["coupled", "independent"] | None = None


class ScheduleSettings(Settings):
    """The learning rate's factor over the steps. `warmup_fraction` is of all steps, and one of the two warmups is null.
    `branches`: shares of the steps at which a run ends that leaves a common trunk to decay."""

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
        for key, kinds in belongs.items():
            given = getattr(self, key) is not None
            if given and self.kind not in kinds:
                raise ValueError(f"schedule={self.kind} has no {key}; it belongs to schedule={' or '.join(kinds)}")
            if not given and self.kind in kinds:
                raise ValueError(f"schedule={self.kind} needs a {key}")
        return self


class _Trainer(Settings):
    """`init_from`: the run whose weights this one starts from (parent.py); None starts from draws."""

    batch_size: PositiveInt
    divergence_smoothing: Fraction
    divergence_patience: PositiveInt
    init_from: RunId | None = None


class TrainerRequest(_Trainer):
    steps: Count | None
    tokens: Count | None
    precision: Literal["auto", "fp32", "bf16"]


class TrainerSettings(_Trainer):
    """`steps` optimizer steps of `batch_size` sequences each."""

    steps: PositiveInt
    precision: Literal["fp32", "bf16"]


class RuntimeSettings(Settings):
    """How a run is carried out. Nothing here changes the science, and nothing here is hashed."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    compile: bool | Literal["auto"]
    threads: PositiveInt
    workers: PositiveInt | None
    parallel: Literal["ddp", "fsdp2"] | None = None  # of one run on several processes (lmablate/distributed)
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


class _Common(Settings):
    schema_version: Literal[1]
    choices: dict[str, str]
    published_vocab_size: PositiveInt | None = None  # of a preset at its own size
    overrides: list[str]
    sweep: str | None
    arm: str | None = None  # of a study, and its stage: tune, evaluate, evaluate_shared
    stage: str | None = None
    norm: Part
    norm_position: Part
    posemb: Part
    attention: Part
    block_layout: Part
    ffn: Part | None = None  # null in a run: one network for every token
    activation: ActivationSettings
    stability: StabilitySettings
    data: DataSettings
    tokenizer: TokenizerSettings | None = None  # of a task, whose tokens are its own
    objective: ObjectiveSettings
    optim: OptimSettings
    schedule: ScheduleSettings
    diagnostics: DiagnosticsSettings | None = None
    runtime: RuntimeSettings
    results_dir: str


class RunRequest(_Common):
    """A configuration as composed by Hydra."""

    seed: NonNegativeInt
    init_seed: NonNegativeInt | None
    data_seed: NonNegativeInt | None
    model: ModelRequest
    aspect_ratio: AspectRatioSettings
    budget: BudgetSettings | None = None
    trainer: TrainerRequest


class RunConfig(_Common):
    """One training run, every number final."""

    init_seed: NonNegativeInt
    data_seed: NonNegativeInt
    model: ModelSettings
    trainer: TrainerSettings
    solved: str | None = None  # what a budget solved, in words
    branches: list[PositiveInt] | None = None  # steps of every run that shares this one's trunk (branches.py)

    @property
    def seed(self) -> int | None:
        """The seed of the run, or None where weights and data have different ones."""
        return self.init_seed if self.init_seed == self.data_seed else None

    @property
    def tokens_per_step(self) -> int:
        return self.trainer.batch_size * self.model.context_length

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.trainer.steps * self.tokens_per_step
