"""The shapes from which attention, position embeddings and FFNs are built and counted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.model.attention import AttentionShape
from lmablate.model.ffn import Dense, FFNOption, FFNShape
from lmablate.model.posemb import PositionShape
from lmablate.objective import objective_of

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def attention_shape(cfg: RunConfig) -> AttentionShape:
    """Return the shape that every attention option of `cfg` gets."""
    m, s = cfg.model, cfg.stability
    if s.qk_norm_over is not None and s.qk_norm is None and s.v_norm is None:
        raise ConfigError(
            f"stability.qk_norm_over={s.qk_norm_over} says how wide a norm is that is not there: "
            "add stability=qk_norm, or leave it out"
        )
    return AttentionShape(
        d_model=m.d_model,
        n_heads=m.n_heads,
        n_kv_heads=m.n_kv_heads,
        head_dim=m.head_dim,
        n_layers=m.n_distinct_layers or m.n_layers,
        qkv_bias=m.biases.qkv,
        out_bias=m.biases.out,
        dropout=m.dropout,
        soft_cap=s.attention_soft_cap,
        qk_norm=components.build(s.qk_norm, "stability.qk_norm") if s.qk_norm else None,
        v_norm=components.build(s.v_norm, "stability.v_norm") if s.v_norm else None,
        norm_all_heads=s.qk_norm_over is not None,
    )


def ffn_option(cfg: RunConfig) -> FFNOption:
    """Return the feed-forward option of `cfg`. Raises ConfigError for settings without meaning in it, and for a choice of experts that
    would reveal later tokens."""

    if cfg.ffn is None:
        return Dense()
    option: FFNOption = components.build(cfg.ffn, "ffn")()
    option.check(cfg.model.n_distinct_layers or cfg.model.n_layers, reads_all=objective_of(cfg).reads_all)
    return option


def ffn_shape(cfg: RunConfig) -> FFNShape:
    """Return the shape that every feed-forward option of `cfg` gets."""
    from lmablate.model.factory import pointwise

    m = cfg.model
    new_fn = partial(pointwise, cfg.activation.fn)
    return FFNShape(m.d_model, m.d_ff, cfg.activation.gated, m.biases.mlp, m.dropout, m.context_length, new_fn)


def has_readout(cfg: RunConfig) -> bool:
    """Return True if the data require every answer from the state of the last token (output_heads.py)."""
    return bool(getattr(cfg.data, "from_last_state", False))


def logit_scale(cfg: RunConfig) -> float | None:
    """Return the factor of the logits before their bias and soft cap; None: no factor."""
    given = cfg.model.logit_scale
    return cfg.model.d_model**-0.5 if given == "inverse_sqrt_d_model" else given


def embedding_scale(cfg: RunConfig) -> float | None:
    """Return the factor of the token rows; None: no factor."""
    given = cfg.model.embedding_scale
    return cfg.model.d_model**0.5 if given == "sqrt_d_model" else given


def detects(cfg: RunConfig) -> bool:
    """Return True if the model predicts for each token whether it was replaced, and has no logits over the vocabulary."""
    return objective_of(cfg).detects


def has_final_norm(cfg: RunConfig) -> bool:
    """Return True if the stack ends in a norm; if model.final_norm is null, the norm position decides."""
    wanted, needed = cfg.model.final_norm, components.target(cfg.norm_position, "norm_position").needs_final_norm
    keys = {"final_norm": wanted, "embedding_norm": cfg.model.embedding_norm}
    if not getattr(components.target(cfg.norm, "norm"), "normalises", True) and (
        given := [key for key in keys if keys[key] is not None]
    ):
        raise ConfigError(
            f"model.{given[0]}={str(keys[given[0]]).lower()} has no effect with norm={cfg.choices.get('norm')}, which normalises "
            "nothing: leave it out, or choose a norm"
        )
    return needed if wanted is None else wanted


def position_shape(cfg: RunConfig) -> PositionShape:
    """Return the shape that every position embedding of `cfg` gets."""
    m = cfg.model
    option, settings = components.resolve(cfg.attention, "attention")
    turned = option.rotated_width(m.head_dim, settings)
    n_layers, ahead = m.n_distinct_layers or m.n_layers, objective_of(cfg).looks_ahead
    return PositionShape(m.embedding_dim or m.d_model, m.n_heads, turned, m.context_length, n_layers, ahead)
