"""Define the typed configuration: the user's request (RunRequest) and the final run (RunConfig).

Types are here, values in ``conf/``. A RunRequest may leave derived numbers open (null); ``config/resolve.py`` solves
them and makes the RunConfig, in which every size is final.
"""

from typing import Literal, NamedTuple

from lmablate.core.settings import Settings
from lmablate.schema.data import DataSettings, TokenizerSettings
from lmablate.schema.diagnostics import DiagnosticsSettings
from lmablate.schema.training_config import (
    ObjectiveSettings,
    OptimRequest,
    OptimSettings,
    RuntimeSettings,
    ScheduleSettings,
    TrainerRequest,
    TrainerSettings,
)
from lmablate.schema.types import Folder, Fraction, MatrixStd, NonNegativeInt, Part, PositiveFloat, PositiveInt, RowStd

SCHEMA_VERSION = 1  # of the format of config.yaml


class Biases(NamedTuple):
    """Whether each kind of linear layer has a bias."""

    qkv: bool
    out: bool
    mlp: bool
    head: bool


class _Model(Settings):
    """Settings of the model that need no solving. `context_length` is in tokens; `init_std` is of the matrices' normal
    draws, `head_std` of the head's matrix, `embedding_std` of the rows of tokens, positions and segments (model/init.py).
    `qkv_bias`, `out_bias` and `mlp_bias` follow `bias` if None; None in other fields is off."""

    d_model: PositiveInt
    n_layers: PositiveInt
    context_length: PositiveInt
    tie_embeddings: bool
    bias: bool
    dropout: Fraction
    init_std: MatrixStd
    depth_scaled_init: bool
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    head_bias: bool | None = None
    embedding_std: RowStd | None = None  # None, as in runs before the keys existed, is init_std
    head_std: MatrixStd | None = None
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
    """The requested sizes of a model; null is solved from the others."""

    n_heads: PositiveInt | None
    n_kv_heads: PositiveInt | None
    head_dim: PositiveInt | None
    d_ff: PositiveInt | None
    ff_ratio: PositiveFloat | None
    gated_scale: PositiveFloat | None


class ModelSettings(_Model):
    """The final sizes of a model: `d_model`, `d_ff` and `head_dim` in channels."""

    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    head_dim: PositiveInt
    d_ff: PositiveInt
    vocab_size: PositiveInt


class ActivationSettings(Settings):
    gated: bool
    fn: Part


class StabilitySettings(Settings):
    """The stability measures of a model; null is off. `qk_norm_over`: one norm over all heads of a token instead of one
    over each head (OLMo 2, arXiv 2501.00656, section 3.3); it applies to `v_norm` too."""

    qk_norm: Part | None
    qk_norm_over: Literal["all_heads"] | None = None
    v_norm: Part | None = None
    z_loss: PositiveFloat | None
    attention_soft_cap: PositiveFloat | None
    final_soft_cap: PositiveFloat | None


class AspectRatioSettings(Settings):
    ratio: PositiveFloat | None


class BudgetSettings(Settings):
    """The size that a run matches to its reference. `knob`: the size solved for it; `reference`: overrides of the
    reference (config/budget_matching.py). Null matches nothing."""

    match: Literal["params", "params_non_embedding", "flops", "kv_cache", "wall_time"] | None = None
    knob: Literal["d_ff", "d_model", "d_ff+d_model", "n_layers", "head_dim"] | None = None
    reference: list[str] | None = None


class _Common(Settings):
    schema_version: Literal[1]
    choices: dict[str, str]
    published_vocab_size: PositiveInt | None = None  # set for a preset at its own size
    overrides: list[str]
    sweep: str | None
    arm: str | None = None  # arm and stage of a study (stages: tune, evaluate, evaluate_shared)
    stage: str | None = None
    norm: Part
    norm_position: Part
    posemb: Part
    attention: Part
    block_layout: Part
    ffn: Part | None = None  # null in a RunConfig: one network for every token
    activation: ActivationSettings
    stability: StabilitySettings
    data: DataSettings
    tokenizer: TokenizerSettings | None = None  # null for a task, which has tokens of its own
    objective: ObjectiveSettings
    schedule: ScheduleSettings
    diagnostics: DiagnosticsSettings | None = None
    runtime: RuntimeSettings
    results_dir: Folder


class RunRequest(_Common):
    """A configuration as Hydra composes it."""

    seed: NonNegativeInt
    init_seed: NonNegativeInt | None
    data_seed: NonNegativeInt | None
    model: ModelRequest
    aspect_ratio: AspectRatioSettings
    budget: BudgetSettings | None = None
    optim: OptimRequest
    trainer: TrainerRequest


class RunConfig(_Common):
    """The configuration of one training run, with every number final."""

    init_seed: NonNegativeInt
    data_seed: NonNegativeInt
    model: ModelSettings
    optim: OptimSettings
    trainer: TrainerSettings
    lr_from: str | None = None  # message about the learning rate that the rule gave
    solved: str | None = None  # message about the sizes that a budget solved
    counted_params: PositiveInt | None = None  # non-embedding parameters that trainer.tokens_per_param counted
    code: dict[str, str] | None = None  # fingerprints of modules that are not as shipped (core/source_code.py)
    branches: list[PositiveInt] | None = None  # steps of every run that shares this one's trunk (runs/wsd_branches.py)

    @property
    def seed(self) -> int | None:
        """Return the seed of the run, or None if weights and data have different ones."""
        return self.init_seed if self.init_seed == self.data_seed else None

    @property
    def tokens_per_step(self) -> int:
        return self.trainer.batch_size * self.model.context_length

    @property
    def tokens(self) -> int:
        """Return the number of training tokens of the whole run."""
        return self.trainer.steps * self.tokens_per_step
