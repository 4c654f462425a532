"""FLOPs of training in closed form: the matrix products, forward and backward.

The backward pass has two products for each one of the forward pass, so training is three times the forward; a multiply-add is two
FLOPs. Attention counts the keys a token really reads: causal attention half the square (once, not twice), a window only its width, a
bidirectional prefix its whole square. Shared key/value heads save their projections but no scores.

``torch.utils.flop_counter`` counts all T keys for every query, whatever the mask. With T instead of :func:`keys_of_layers`, ours is its
count to the last FLOP for a batch of one text. Two kernels are exceptions: for a GPU's fused attention it counts five backward products
instead of four, since the scores are recomputed, and for the CPU's none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.budget import stacks

if TYPE_CHECKING:
    from lmablate.budget import measured
    from lmablate.schema.run_config import RunConfig


def keys_read(length: int, window: int | None = None, stride: int | None = None) -> float:
    """Return the mean number of keys a query reads under a causal mask, including its own. Of the T queries of a text, T - d have a key
    at distance d; distances 0, stride, 2 stride, ... below `window` are read."""
    step = stride or 1
    n = ((length if window is None else min(window, length)) - 1) // step + 1
    return n - step * n * (n - 1) / (2 * length)


def forward_products(cfg: RunConfig) -> tuple[float, list[float]]:
    """Return the multiply-adds of the forward pass: with matrices per token, and of each layer per pair of a query and a key it reads.

    Experts that a token does not use are left out. Each of several stacks has its own layers, as in :func:`keys_of_layers`; a matrix
    that only some tokens of a text use counts for those.
    """
    from lmablate.model.multi_stack import generator_of
    from lmablate.objective import objective_of

    if cfg.model.n_encoder_layers is not None:
        return _products_of_two(cfg)
    matrices, scores = stack_products(cfg)
    matrices += stacks.ends(cfg).matmuls
    if (own := generator_of(cfg)) is None:
        return matrices, scores
    more, further = stack_products(own)
    hidden = objective_of(cfg).targets_per_token(cfg.model.context_length)  # tokens the generator's head reads
    return matrices + (more + stacks.row_map(own).matmuls + hidden * stacks.head(own).matmuls), scores + further


def _products_of_two(cfg: RunConfig) -> tuple[float, list[float]]:
    """`forward_products` of an encoder and its decoder, per token of both their texts."""
    from lmablate.model.attention import CrossAttention
    from lmablate.model.dims import attention_shape
    from lmablate.model.multi_stack import decoder_of, encoder_of

    encoder, decoder = encoder_of(cfg), decoder_of(cfg)
    shape, n = attention_shape(decoder), cfg.model.n_layers
    reads, first = stack_products(encoder)
    reads += n * CrossAttention.source_matmul_params(shape)
    writes, second = stack_products(decoder)
    writes += n * CrossAttention.matmul_params(shape, {}) + stacks.ends(decoder).matmuls
    total = reads * encoder.model.context_length + writes * decoder.model.context_length
    across = [CrossAttention.score_macs(shape, {})] * n
    return total / cfg.model.context_length, [*first, *second, *across]


def stack_products(cfg: RunConfig) -> tuple[float, list[float]]:
    """Return `forward_products` of the layers of one stack."""
    from lmablate.budget import measured
    from lmablate.model.dims import ffn_option, ffn_shape
    from lmablate.model.multi_stack import layer_order

    m, order = cfg.model, layer_order(cfg)
    ffn, sizes = ffn_option(cfg), ffn_shape(cfg)
    attention = [attention_work(cfg, i) for i in order]
    of_positions = position_work(cfg)
    matrices: float = sum(work.per_token for work in attention)
    if measured.states(type(ffn), measured.FLOPS["ffn"]):
        matrices += sum(ffn.matmul_params(sizes, layer=i) for i in order)
    else:
        matrices += sum(measured.ffn_work(cfg, i).per_token for i in order)
    runs = m.n_layers // (m.n_distinct_layers or m.n_layers)  # of each layer's positions
    matrices += runs * of_positions.per_token
    if {"norm", "norm_position", "block_layout", "activation"} & set(measured.measures_flops(cfg)):
        matrices += m.n_layers * measured.shell_work(cfg).per_token
    return matrices, [_whole(work.per_key + of_positions.per_key) for work in attention]


def attention_work(cfg: RunConfig, layer: int, *, of_cached: bool = False) -> measured.MacCounts:
    """Return the multiply-adds of an attention branch per token and per pair of query and key; with `of_cached`, in generation."""
    from lmablate.budget import measured
    from lmablate.model import components
    from lmablate.model.dims import attention_shape

    option, settings = components.resolve(cfg.attention, "attention")
    if not measured.states(option, measured.FLOPS["attention"]):
        return measured.attention_work(cfg, layer)
    shape = attention_shape(cfg)
    a_key = option.cached_score_macs if of_cached else option.score_macs
    return measured.MacCounts(option.matmul_params(shape, settings), a_key(shape, settings))


def position_work(cfg: RunConfig) -> measured.MacCounts:
    """Return the multiply-adds of a position embedding: per token over all distinct layers, per pair in one layer."""
    from lmablate.budget import measured
    from lmablate.model import components
    from lmablate.model.dims import position_shape

    option, settings = components.resolve(cfg.posemb, "posemb")
    if not measured.states(option, measured.FLOPS["posemb"]):
        work = measured.posemb_work(cfg)
        return work._replace(per_token=work.per_token * (cfg.model.n_distinct_layers or cfg.model.n_layers))
    shape = position_shape(cfg)
    return measured.MacCounts(option.matmul_params(shape, settings), option.score_macs(shape, settings))


def _whole(products: float) -> float:
    """Round a measured count, which is an integer up to rounding errors."""
    return round(products) if abs(products - round(products)) < 1e-6 * max(1.0, abs(products)) else products


def spans(cfg: RunConfig) -> list[tuple[int | None, int | None]]:
    """Return (window, stride) of every layer: the keys a query reads."""
    from lmablate.model import components
    from lmablate.model.multi_stack import layer_order

    option, settings = components.resolve(cfg.attention, "attention")
    return [tuple(option.layer_span(block, settings)) for block in layer_order(cfg)]


def keys_of_layers(cfg: RunConfig) -> list[float]:
    """Return the mean number of keys that a token's queries read in each layer in training, including keys after it.

    Of two stacks these are the encoder's layers, the decoder's, and its cross attention, each weighted by its part of the tokens. A
    generator's layers follow the model's.
    """
    from lmablate.model.multi_stack import decoder_of, encoder_of, generator_of

    if cfg.model.n_encoder_layers is None:
        generator = generator_of(cfg)
        return stack_keys(cfg) + (stack_keys(generator) if generator else [])
    encoder, decoder = encoder_of(cfg), decoder_of(cfg)
    length, source = cfg.model.context_length, encoder.model.context_length
    share = source / length
    own = [share * keys for keys in stack_keys(encoder)] + [(1 - share) * keys for keys in stack_keys(decoder)]
    return own + [(1 - share) * source] * cfg.model.n_layers


def stack_keys(cfg: RunConfig) -> list[float]:
    """Return `keys_of_layers` of one stack."""
    from lmablate.objective import objective_of

    objective, length = objective_of(cfg), cfg.model.context_length
    return [keys_read(length, *span) + objective.keys_ahead(length, *span) for span in spans(cfg)]


def flops_per_token(cfg: RunConfig) -> int:
    """Return the training FLOPs per token, rounded to an integer."""
    matrices, a_key = forward_products(cfg)
    scores = sum(n * keys for n, keys in zip(a_key, keys_of_layers(cfg), strict=True))
    return round(3 * 2 * (matrices + scores))


SOFTMAX_OPERATIONS = (
    6 + 5
)  # scale, maximum, subtract, exponentiate, sum, divide; back: multiply, sum, subtract, multiply, scale


def softmax_flops(cfg: RunConfig) -> float:
    """Return the FLOPs per token of attention's softmax, both passes: `SOFTMAX_OPERATIONS` per score that is read."""
    from lmablate.model.multi_stack import generator_of

    heads, generator = cfg.model.n_heads, generator_of(cfg)
    of_generator = 0.0 if generator is None else generator.model.n_heads * sum(stack_keys(generator))
    own = stack_keys(cfg) if generator else keys_of_layers(cfg)
    return SOFTMAX_OPERATIONS * (heads * sum(own) + of_generator)
