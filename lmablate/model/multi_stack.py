"""The stacks of a model with more than one, each as a configuration of its own, built and counted like any other.

``model.n_encoder_layers`` makes two stacks. The objective splits a text; an encoder reads the first part, and the decoder's cross
attention reads its states (Vaswani et al. 2017, arXiv 1706.03762, section 3.1). An objective that trains a generator with the model
gives it a fraction of the model's width (Clark et al. 2020, arXiv 2003.10555, section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.objective import objective_of
from lmablate.schema.training_config import ObjectiveSettings

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def source_length(cfg: RunConfig) -> int:
    """Return the number of tokens of a text that the encoder of `cfg` reads. Raises ConfigError for what two stacks cannot have."""
    length = objective_of(cfg).source_length(cfg.model.context_length)
    given = f"model.n_encoder_layers={cfg.model.n_encoder_layers}"
    if length is None:
        raise ConfigError(
            f"{given} makes an encoder and a decoder, and objective={cfg.objective.kind}"
            f"{' with objective.prefix_draw=uniform' if cfg.objective.prefix_draw == 'uniform' else ''} does not split every text at one "
            "place: use objective=span_corruption, or objective=prefix with objective.prefix_draw=fixed"
        )
    for key in ("embedding_dim", "segments", "n_distinct_layers"):
        if (value := getattr(cfg.model, key)) is not None:
            raise ConfigError(
                f"model.{key}={value} belongs to a model of one stack, and {given} makes two: drop one of them"
            )
    if hasattr(components.target(cfg.norm_position, "norm_position"), "one_stack"):
        raise ConfigError(
            f"norm_position={cfg.choices.get('norm_position')} has constants for a model of one stack, and {given} makes two: use "
            "another norm position"
        )
    return length


def encoder_of(cfg: RunConfig) -> RunConfig:
    """Return the configuration of the encoder of a model of two stacks, which reads the first part of a text bidirectionally."""
    sizes = {"n_layers": cfg.model.n_encoder_layers, "context_length": source_length(cfg)}
    return _stack(cfg, sizes, bidirectional=True)


def decoder_of(cfg: RunConfig) -> RunConfig:
    """Return the configuration of the decoder without its cross attention, which reads the rest of a text left to right."""
    return _stack(cfg, {"context_length": cfg.model.context_length - source_length(cfg)}, bidirectional=False)


def generator_of(cfg: RunConfig) -> RunConfig | None:
    """Return the configuration of the generator that the objective of `cfg` trains; None if there is none. It reads the same embedded
    tokens. Heads keep their width and become fewer; if groups of them share keys, they become narrower."""
    share = cfg.objective.generator_share
    if share is None:
        return None
    m = cfg.model
    grouped = 1 < m.n_kv_heads < m.n_heads
    n_heads = m.n_heads if grouped else max(1, round(share * m.n_heads))
    width, given = max(2, 2 * round(share * m.d_model / 2)), m.embedding_dim or m.d_model
    sizes = {
        "d_model": width,
        "d_ff": max(2, 2 * round(share * m.d_ff / 2)),
        "n_heads": n_heads,
        "n_kv_heads": m.n_kv_heads if grouped or m.n_kv_heads == 1 else n_heads,
        "head_dim": max(2, 2 * round(share * m.head_dim / 2)) if grouped else m.head_dim,
        "embedding_dim": None if given == width else given,
        "tie_embeddings": True,
        "head_bias": True,
        "head_transform": True,
    }
    return _stack(cfg, sizes, bidirectional=True)


def _stack(cfg: RunConfig, sizes: dict[str, Any], *, bidirectional: bool) -> RunConfig:
    own = (
        {"kind": "mlm", "mask_share": 0.15, "random_share": 0.0, "kept_share": 0.0}
        if bidirectional
        else {"kind": "causal"}
    )
    model = cfg.model.model_copy(update={"n_encoder_layers": None, **sizes})
    return cfg.model_copy(update={"model": model, "objective": ObjectiveSettings(**own)})


def layer_order(cfg: RunConfig) -> list[int]:
    """Return the block that each layer runs: its own, or with ``model.n_distinct_layers`` one of that many, shared by neighbours
    (ALBERT, Lan et al. 2019, arXiv 1909.11942, section 3.1, shares one among all)."""
    n, distinct = cfg.model.n_layers, cfg.model.n_distinct_layers
    if distinct is None:
        return list(range(n))
    if distinct >= n or n % distinct:
        fits = [k for k in range(1, n) if n % k == 0]
        raise ConfigError(
            f"model.n_distinct_layers={distinct} of model.n_layers={n}: every block must run equally often, more than once: "
            f"allowed are {', '.join(map(str, fits)) or 'none'}"
        )
    return [i * distinct // n for i in range(n)]
