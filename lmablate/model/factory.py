"""The factory: the only way from a configuration to a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmablate.core.errors import ConfigError
from lmablate.model import components
from lmablate.model.attention import CrossAttention
from lmablate.model.block_layout import InTurn, Sum
from lmablate.model.dims import (
    attention_shape,
    detects,
    embedding_scale,
    ffn_option,
    ffn_shape,
    has_final_norm,
    has_readout,
    logit_scale,
    position_shape,
)
from lmablate.model.encoder import Encoder, Generator, Reader
from lmablate.model.init import Spread, initialise, seeded_draws
from lmablate.model.multi_stack import decoder_of, encoder_of, generator_of, layer_order, source_length
from lmablate.model.output_heads import Detector, LastState, Transform
from lmablate.model.posemb import PosEmb
from lmablate.model.primitives import Embedding, Head, Linear, exact
from lmablate.model.transformer import TransformerLM
from lmablate.objective import objective_of

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def build_model(cfg: RunConfig, device: str | torch.device | None = None) -> TransformerLM:
    """Build and initialise the model that `cfg` describes, on `device` (None: the CPU). On ``device="meta"`` nothing is allocated or
    drawn. Raises ConfigError for options that cannot be combined."""
    with torch.device(device or "cpu"):
        model = _assemble(cfg)
    model.config = cfg
    return model


def _assemble(cfg: RunConfig) -> TransformerLM:
    m, objective = cfg.model, objective_of(cfg)
    build = partial(_build, cfg)
    fill = partial(initialise, seed=cfg.init_seed, std=spread(cfg), out_proj_scale=1.0)
    new_norm = components.build(cfg.norm, "norm")
    width = m.embedding_dim or m.d_model  # of the token rows
    two = m.n_encoder_layers is not None
    own = decoder_of(cfg) if two else cfg

    embedding = Embedding(m.vocab_size, width)
    posemb = build("posemb", components.build(cfg.posemb, "posemb"), position_shape(own))
    head: Head | Detector = Head(
        width if m.head_transform else m.d_model, m.vocab_size, tied=m.tie_embeddings, bias=m.biases.head
    )
    if objective.detects:
        head = Detector(m.d_model, fn=pointwise(cfg.activation.fn), bias=m.biases.mlp)
    fill(embedding, "embedding")
    fill_added = partial(fill, std=spread(cfg)._replace(added=True))
    fill_added(posemb, "posemb")
    fill(head, "head")
    segments = Embedding(m.segments, width) if m.segments else None
    embedding_map = Linear(m.embedding_dim, m.d_model, bias=m.biases.mlp) if m.embedding_dim else None
    readout = build("readout", _readout, cfg)
    if segments is not None:
        fill_added(segments, "segments")
    for part, key in ((embedding_map, "embedding_map"), (readout, "readout")):
        if part is not None:
            fill(part, key)
    return TransformerLM(
        embedding=embedding,
        posemb=posemb,
        blocks=_blocks(own, "", cross=two),
        final_norm=build("final_norm", new_norm, m.d_model) if has_final_norm(cfg) else nn.Identity(),
        head=head,
        dropout=m.dropout,
        final_soft_cap=cfg.stability.final_soft_cap,
        embedding_scale=embedding_scale(cfg),
        embedding_norm=build("embedding_norm", new_norm, width) if m.embedding_norm else None,
        logit_scale=logit_scale(cfg),
        readout=readout,
        reads_all=objective.reads_all,
        order=layer_order(cfg),
        segments=segments,
        embedding_map=embedding_map,
        generator=_generator(cfg),
        encoder=_encoder(cfg) if two else None,
        source_length=source_length(cfg) if two else None,
    )


def spread(cfg: RunConfig) -> Spread:
    """Return the standard deviations of the draws that `cfg` sets."""
    m = cfg.model
    rows = m.init_std if m.embedding_std is None else m.embedding_std
    return Spread(m.init_std, rows, row_scale=embedding_scale(cfg) or 1.0, tied=m.tie_embeddings, head=m.head_std)


def _build(cfg: RunConfig, scope: str, new: Callable[..., Any], *args: Any) -> Any:
    """Call `new`, with its own random draws seeded by their place."""
    if torch.get_default_device().type == "meta":
        return new(*args)
    with seeded_draws(cfg.init_seed, scope):
        return new(*args)


def _blocks(cfg: RunConfig, at: str, *, cross: bool) -> list[nn.Module]:
    """The distinct blocks of a stack; `at` is the prefix of the keys of its draws."""
    m = cfg.model
    scale = (2 * m.n_layers) ** -0.5 if m.depth_scaled_init else 1.0
    fill = partial(initialise, seed=cfg.init_seed, std=spread(cfg), out_proj_scale=scale, xavier_gain=_branch_gain(cfg))
    new_norm = partial(components.build(cfg.norm, "norm"), m.d_model)
    place = partial(components.build(cfg.norm_position, "norm_position"), norm=new_norm, n_layers=m.n_layers)
    layout, option = components.build(cfg.block_layout, "block_layout"), components.resolve(cfg.attention, "attention")
    attention, shape = components.build(cfg.attention, "attention"), attention_shape(cfg)
    ffn, sizes = ffn_option(cfg), ffn_shape(cfg)

    blocks = []
    for i in range(m.n_distinct_layers or m.n_layers):
        attn_branch = _build(cfg, f"{at}{i}.attention", partial(attention, layer=i), shape)
        ffn_branch = _build(cfg, f"{at}{i}.ffn", partial(ffn.branch, layer=i), sizes)
        fill(attn_branch, f"{at}{i}.attention")
        fill(ffn_branch, f"{at}{i}.ffn")
        if not cross:
            blocks.append(_build(cfg, f"{at}{i}.block", layout, attn_branch, ffn_branch, place))
            continue
        cross_branch = CrossAttention(shape, layer=i, scale=option[1].get("scale"))
        fill(cross_branch, f"{at}{i}.cross")
        if getattr(layout.func, "in_turn", False):
            both = attn_branch, ffn_branch, partial(_with_cross_attention, place, attn_branch, cross_branch)
        else:
            both = Sum(attn_branch, cross_branch), ffn_branch, place
        blocks.append(_build(cfg, f"{at}{i}.block", layout, *both))
    return blocks


def _with_cross_attention(
    place: Callable[..., Any], attention: nn.Module, cross: nn.Module, branch: nn.Module
) -> nn.Module:
    """`branch` in its norm position; cross attention follows attention in one of its own."""
    return InTurn(place(attention), place(cross)) if branch is attention else place(branch)


def _readout(cfg: RunConfig) -> nn.Module | None:
    """The module between the stack and the head."""
    m, new_norm = cfg.model, components.build(cfg.norm, "norm")
    if detects(cfg):
        for key in ("tie_embeddings", "head_bias", "head_transform"):
            if getattr(m, key):
                raise ConfigError(
                    f"model.{key}=true belongs to a head over the vocabulary, and objective={cfg.objective.kind} trains one of a single "
                    "logit (its generator is tied, with a transform and a bias, anyway): leave it out"
                )
        return None
    if m.embedding_dim is not None and m.tie_embeddings and not m.head_transform:
        raise ConfigError(
            f"model.tie_embeddings=true with model.embedding_dim={m.embedding_dim}: the head reads states of model.d_model={m.d_model} "
            "and token rows have another width: add model.head_transform=true, which maps them, or leave the head untied"
        )
    if has_readout(cfg):
        if m.head_transform:
            raise ConfigError(
                f"model.head_transform=true: data={cfg.choices.get('data')} has a readout of its own before the head: leave it out"
            )
        return LastState(m.d_model, m.context_length, new_norm=partial(new_norm, m.d_model), bias=m.biases.mlp)
    if not m.head_transform:
        return None
    width = m.embedding_dim or m.d_model
    fn = pointwise(cfg.activation.fn)
    return Transform(m.d_model, width, fn=fn, norm=new_norm(width), bias=m.biases.mlp)


def _reader(cfg: RunConfig, at: str, posemb: PosEmb) -> Reader:
    """A bidirectional stack, built from a configuration of its own."""
    m = cfg.model
    fill = partial(initialise, seed=cfg.init_seed, std=spread(cfg), out_proj_scale=1.0)
    fill(posemb, f"{at}posemb", std=spread(cfg)._replace(added=True))
    new_norm = components.build(cfg.norm, "norm")
    final_norm = _build(cfg, f"{at}final_norm", new_norm, m.d_model) if has_final_norm(cfg) else nn.Identity()
    return Reader(posemb=posemb, blocks=_blocks(cfg, at, cross=False), order=layer_order(cfg), final_norm=final_norm)


def _encoder(cfg: RunConfig) -> Encoder:
    own = encoder_of(cfg)
    posemb = _build(cfg, "encoder.posemb", components.build(own.posemb, "posemb"), position_shape(own))
    new_norm = partial(_build, cfg, "encoder.embedding_norm", components.build(own.norm, "norm"), own.model.d_model)
    norm = new_norm() if own.model.embedding_norm else None
    return Encoder(reader=_reader(own, "encoder.", posemb), embedding_norm=norm, dropout=own.model.dropout)


def _generator(cfg: RunConfig) -> Generator | None:
    own = generator_of(cfg)
    if own is None:
        return None
    m, shape = own.model, position_shape(own)
    table = components.target(own.posemb, "posemb").is_token_table  # which it shares
    posemb = PosEmb(shape) if table else _build(own, "generator.posemb", components.build(own.posemb, "posemb"), shape)
    embedding_map = Linear(m.embedding_dim, m.d_model, bias=m.biases.mlp) if m.embedding_dim else None
    readout, head = _build(own, "generator.readout", _readout, own), Head(m.d_model, m.vocab_size, tied=True, bias=True)
    assert readout is not None
    generator = Generator(
        embedding_map=embedding_map,
        reader=_reader(own, "generator.", posemb),
        readout=readout,
        head=head,
        logit_scale=logit_scale(own),
    )
    fill = partial(initialise, seed=own.init_seed, std=spread(own), out_proj_scale=1.0)
    for part, key in ((embedding_map, "generator.embedding_map"), (readout, "generator.readout")):
        if part is not None:
            fill(part, key)
    return generator


def _branch_gain(cfg: RunConfig) -> float | None:
    """The gain of the branches' draws that the norm position requires."""
    option, settings = components.resolve(cfg.norm_position, "norm_position")
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
    """``model.init=xavier`` draws the matrices of the branches with variance ``2 / (rows + columns)`` (Glorot and Bengio 2010), the
    setting of Xiong et al. 2020 (arXiv 2002.04745, section 3.2); the other tables keep `init_std`."""
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
    """Return the activation of one layer: a function, or a new instance of a module class, so that layers share no weight."""
    fn = components.build(part, "activation.fn")
    if not inspect.isclass(fn.func):
        return fn
    own: nn.Module = fn()
    if next(own.parameters(), None) is not None:  # as that of PReLU, which multiplies tensors of one dtype
        own.register_forward_pre_hook(lambda module, args: (exact(args[0]), *args[1:]))
    return own
