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
from lmablate.model.ffn import network
from lmablate.model.init import initialise
from lmablate.model.primitives import Embedding, Head
from lmablate.model.readout import LastState
from lmablate.model.shapes import attention_shape, has_final_norm, has_readout, position_shape
from lmablate.model.transformer import TransformerLM

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


def build_model(cfg: RunConfig, device: str | torch.device | None = None) -> TransformerLM:
    """Build and initialise the model that `cfg` describes, on the CPU unless `device` says otherwise.

    On ``device="meta"`` nothing is allocated or drawn. Raises ConfigError for choices that cannot meet.
    """
    with torch.device(device or "cpu"):
        model = _assemble(cfg)
    model.config = cfg
    return model


def _assemble(cfg: RunConfig) -> TransformerLM:
    m = cfg.model
    seed = cfg.init_seed
    scale = (2 * m.n_layers) ** -0.5 if m.depth_scaled_init else 1.0
    fill = partial(initialise, seed=seed, std=m.init_std, out_proj_scale=scale)
    fill_branch = partial(fill, xavier_gain=_branch_gain(cfg))

    new_norm = partial(parts.build(cfg.norm, "norm"), m.d_model)
    place = partial(parts.build(cfg.norm_position, "norm_position"), norm=new_norm, n_layers=m.n_layers)
    layout = parts.build(cfg.block_layout, "block_layout")
    attention = parts.build(cfg.attention, "attention")
    shape = attention_shape(cfg)
    ffn = network(cfg.activation.gated)

    embedding = Embedding(m.vocab_size, m.d_model)
    posemb = parts.build(cfg.posemb, "posemb")(position_shape(cfg))
    head = Head(m.d_model, m.vocab_size, tied=m.tie_embeddings, bias=m.biases.head)
    fill(embedding, "embedding")
    fill(posemb, "posemb")
    fill(head, "head")

    blocks = []
    for i in range(m.n_layers):
        attn_branch = attention(shape, layer=i)
        ffn_branch = ffn(m.d_model, m.d_ff, fn=pointwise(cfg.activation.fn), bias=m.biases.mlp, dropout=m.dropout)
        fill_branch(attn_branch, f"{i}.attention")
        fill_branch(ffn_branch, f"{i}.ffn")
        blocks.append(layout(attn_branch, ffn_branch, place))
    readout = None
    if has_readout(cfg):
        readout = LastState(m.d_model, m.context_length, new_norm=new_norm, bias=m.biases.mlp)
        fill(readout, "readout")
    return TransformerLM(
        embedding=embedding,
        posemb=posemb,
        blocks=blocks,
        final_norm=new_norm() if has_final_norm(cfg) else nn.Identity(),
        head=head,
        dropout=m.dropout,
        final_soft_cap=cfg.stability.final_soft_cap,
        embedding_scale=m.d_model**0.5 if m.embedding_scale == "sqrt_d_model" else m.embedding_scale,
        embedding_norm=new_norm() if m.embedding_norm else None,
        logit_scale=m.logit_scale,
        readout=readout,
    )


def _branch_gain(cfg: RunConfig) -> float | None:
    """What the chosen norm position says of the draws of the branches."""
    option, settings = parts.resolve(cfg.norm_position, "norm_position")
    gain = option.branch_gain(cfg.model.n_layers, settings)
    if cfg.model.init is not None:
        return _xavier_gain(cfg, gain)
    if gain is not None and cfg.model.depth_scaled_init:
        raise ConfigError(
            f"model.depth_scaled_init=true has no effect beside norm_position={cfg.choices.get('norm_position')}, which draws the "
            "branches by a rule of its own: leave it out"
        )
    return gain


def _xavier_gain(cfg: RunConfig, of_position: float | None) -> float:
    """``model.init=xavier`` draws the matrices of the branches with variance ``2 / (rows + columns)`` (Glorot and Bengio 2010),
    the setting of Xiong et al. 2020 (arXiv 2002.04745, section 3.2); the other tables keep `init_std`."""
    other = {
        f"norm_position={cfg.choices.get('norm_position')}": of_position is not None,
        "model.depth_scaled_init=true": cfg.model.depth_scaled_init,
    }
    for word, there in other.items():
        if there:
            raise ConfigError(
                f"model.init={cfg.model.init} draws the matrices of the branches by one rule and {word} by another: drop one of them"
            )
    return 1.0


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
