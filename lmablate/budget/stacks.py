"""The account of what stands beside one stack of layers: its ends, a second stack, a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


def end_products(cfg: RunConfig) -> int:
    """Multiply-adds with each token of the map of the token rows, of what stands before the head, and of the head."""
    from lmablate.model.dims import detects, has_readout
    from lmablate.model.output_heads import Detector, LastState

    m = cfg.model
    width = m.embedding_dim or m.d_model
    total = m.embedding_dim * m.d_model if m.embedding_dim else 0
    total += LastState.weights_per_token(m.d_model) if has_readout(cfg) else 0
    if detects(cfg):
        return total + Detector.weights_per_token(m.d_model)
    return total + (width * (m.d_model + m.vocab_size) if m.head_transform else m.d_model * m.vocab_size)


def end_params(cfg: RunConfig) -> tuple[int, int]:
    """Learned numbers of the same: of tables (of tokens and segments, an untied head, its bias), and of the rest, the norm of
    what is embedded among them."""
    from lmablate.model import components
    from lmablate.model.dims import detects, has_readout
    from lmablate.model.output_heads import Detector, LastState, Transform

    m, bias = cfg.model, cfg.model.biases.mlp
    width = m.embedding_dim or m.d_model
    one_norm, narrow = (components.count(cfg.norm, "norm", size) for size in (m.d_model, width))
    rest = narrow * bool(m.embedding_norm)
    rest += (m.embedding_dim * m.d_model + m.d_model * bias) if m.embedding_dim else 0
    tables = width * (m.vocab_size + (m.segments or 0))
    if has_readout(cfg):
        rest += LastState.weights_per_token(m.d_model)
        rest += LastState.n_vector_params(m.d_model, one_norm=one_norm, bias=bias)
    if detects(cfg):
        return tables, rest + Detector.weights_per_token(m.d_model) + Detector.n_vector_params(m.d_model, bias=bias)
    if m.head_transform:
        rest += m.d_model * width + Transform.n_vector_params(width, one_norm=narrow, bias=bias)
    head = 0 if m.tie_embeddings else m.vocab_size * (width if m.head_transform else m.d_model)
    return tables + head + m.vocab_size * m.biases.head, rest


def generator_products(cfg: RunConfig) -> tuple[float, list[float]]:
    """Multiply-adds of the generator of `cfg`, as of a stack; its head reads the hidden tokens alone."""
    from lmablate.budget.flops import stack_products
    from lmablate.model.multi_stack import generator_of
    from lmablate.objective import objective_of

    own = generator_of(cfg)
    if own is None:
        return 0, []
    matrices, scores = stack_products(own)
    mapped = own.model.embedding_dim * own.model.d_model if own.model.embedding_dim else 0
    hidden = objective_of(cfg).targets_per_token(cfg.model.context_length)
    return matrices + mapped + hidden * (end_products(own) - mapped), scores


def generator_keys(cfg: RunConfig) -> list[float]:
    from lmablate.budget.flops import stack_keys
    from lmablate.model.multi_stack import generator_of

    own = generator_of(cfg)
    return [] if own is None else stack_keys(own)


def generator_params(cfg: RunConfig) -> tuple[int, int]:
    """Learned numbers of the generator beside what it shares: the bias of its head, and the rest."""
    from lmablate.budget.parameters import stack_params
    from lmablate.model import components
    from lmablate.model.multi_stack import generator_of
    from lmablate.model.output_heads import Transform

    own = generator_of(cfg)
    if own is None:
        return 0, 0
    m, bias = own.model, own.model.biases.mlp
    width = m.embedding_dim or m.d_model
    rest = stack_params(own).layers
    rest += (m.embedding_dim * m.d_model + m.d_model * bias) if m.embedding_dim else 0
    rest += m.d_model * width
    rest += Transform.n_vector_params(width, one_norm=components.count(own.norm, "norm", width), bias=bias)
    return m.vocab_size, rest


def cross_params(cfg: RunConfig) -> int:
    """Learned numbers of the cross attention of one layer, with the norms of its branch."""
    from lmablate.model import components
    from lmablate.model.attention import CrossAttention
    from lmablate.model.dims import attention_shape

    shape = attention_shape(cfg)
    total = CrossAttention.weights_per_token(shape, {}) + CrossAttention.weights_per_source_token(shape)
    total += CrossAttention.n_vector_params(shape, {})
    for name, widths in zip(("qk_norm", "v_norm"), CrossAttention.norm_widths(shape, {}), strict=True):
        norm = getattr(cfg.stability, name)
        total += sum(components.count(norm, f"stability.{name}", width) for width in widths) if norm else 0
    if getattr(components.target(cfg.block_layout, "block_layout"), "in_turn", False):
        position = components.target(cfg.norm_position, "norm_position")
        total += position.norms_per_branch * components.count(cfg.norm, "norm", cfg.model.d_model)
    return total


def second_norm(cfg: RunConfig) -> int:
    """The norm of what the encoder embeds, where there is one of what the decoder does."""
    from lmablate.model import components

    return components.count(cfg.norm, "norm", cfg.model.d_model) * bool(cfg.model.embedding_norm)


def products_of_two(cfg: RunConfig) -> tuple[float, list[float]]:
    """Multiply-adds of an encoder and its decoder, for each token of both their texts."""
    from lmablate.budget.flops import stack_products
    from lmablate.model.attention import CrossAttention
    from lmablate.model.dims import attention_shape
    from lmablate.model.multi_stack import decoder_of, encoder_of

    encoder, decoder = encoder_of(cfg), decoder_of(cfg)
    shape, n = attention_shape(decoder), cfg.model.n_layers
    reads, first = stack_products(encoder)
    reads += n * CrossAttention.weights_per_source_token(shape)
    writes, second = stack_products(decoder)
    writes += n * CrossAttention.weights_per_token(shape, {}) + end_products(decoder)
    total = reads * encoder.model.context_length + writes * decoder.model.context_length
    across = [CrossAttention.products_per_key(shape, {})] * n
    return total / cfg.model.context_length, [*first, *second, *across]


def keys_of_two(cfg: RunConfig) -> list[float]:
    from lmablate.budget.flops import stack_keys
    from lmablate.model.multi_stack import decoder_of, encoder_of

    encoder, decoder = encoder_of(cfg), decoder_of(cfg)
    length, source = cfg.model.context_length, encoder.model.context_length
    share = source / length
    own = [share * keys for keys in stack_keys(encoder)] + [(1 - share) * keys for keys in stack_keys(decoder)]
    return own + [(1 - share) * source] * cfg.model.n_layers
