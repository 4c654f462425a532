"""From a configuration to a model: the only door."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmablate.errors import ConfigError
from lmablate.model import parts
from lmablate.model.attention import AttentionShape
from lmablate.model.ffn import GatedFFN, PlainFFN
from lmablate.model.init import initialise
from lmablate.model.posemb import PositionShape
from lmablate.model.primitives import Embedding, Head
from lmablate.model.transformer import TransformerLM

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


def build_model(cfg: RunConfig, device: str | torch.device | None = None) -> TransformerLM:
    """Build and initialise the model that `cfg` describes, on the CPU unless `device` says otherwise.

    On ``device="meta"`` nothing is allocated or drawn. Raises ConfigError for choices that cannot meet.
    """
    with torch.device(device or "cpu"):
        return _assemble(cfg)


def _assemble(cfg: RunConfig) -> TransformerLM:
    m = cfg.model
    seed = cfg.init_seed
    scale = (2 * m.n_layers) ** -0.5 if m.depth_scaled_init else 1.0
    fill = partial(initialise, seed=seed, std=m.init_std, out_proj_scale=scale)

    new_norm = partial(parts.build(cfg.norm, "norm"), m.d_model)
    position = parts.build(cfg.norm_position, "norm_position")
    layout = parts.build(cfg.block_layout, "block_layout")
    attention = parts.build(cfg.attention, "attention")
    qk_norm = parts.build(cfg.stability.qk_norm, "stability.qk_norm") if cfg.stability.qk_norm else None
    shape = AttentionShape(
        m.d_model, m.n_heads, m.n_kv_heads, m.head_dim, m.bias, m.dropout, qk_norm, cfg.stability.attention_soft_cap
    )
    ffn = GatedFFN if cfg.activation.gated else PlainFFN

    embedding = Embedding(m.vocab_size, m.d_model)
    posemb = parts.build(cfg.posemb, "posemb")(PositionShape(m.d_model, m.n_heads, m.head_dim, m.context_length))
    head = Head(m.d_model, m.vocab_size, tied=m.tie_embeddings)
    fill(embedding, "embedding")
    fill(posemb, "posemb")
    fill(head, "head")

    blocks = []
    for i in range(m.n_layers):
        attn_branch = attention(shape, layer=i)
        ffn_branch = ffn(m.d_model, m.d_ff, fn=pointwise(cfg.activation.fn), bias=m.bias, dropout=m.dropout)
        fill(attn_branch, f"{i}.attention")
        fill(ffn_branch, f"{i}.ffn")
        blocks.append(layout(attn_branch, ffn_branch, partial(position, norm=new_norm)))
    return TransformerLM(
        embedding=embedding,
        posemb=posemb,
        blocks=blocks,
        final_norm=new_norm() if parts.target(cfg.norm_position, "norm_position").needs_final_norm else nn.Identity(),
        head=head,
        dropout=m.dropout,
        final_soft_cap=cfg.stability.final_soft_cap,
    )


def pointwise(part: dict[str, Any]) -> Callable[..., Any]:
    """The activation of one layer: a function as it is, a module class built anew so that layers share no weight."""
    fn = parts.build(part, "activation.fn")
    return fn() if inspect.isclass(fn.func) else fn


def check(cfg: RunConfig) -> None:
    """Raise ConfigError if the model of `cfg` cannot be built; costs no memory."""
    try:
        build_model(cfg, device="meta")
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        chosen = ", ".join(f"{axis}={option}" for axis, option in cfg.choices.items())
        raise ConfigError(f"the model cannot be built from {chosen}: {error}") from error
