"""FLOPs of training in closed form: the matrix products, forward and backward.

The backward pass has two products for each one of the forward pass, so training is three times the forward; a
multiply-add is two FLOPs. Attention is counted over the keys a token really reads: causal attention takes half the square
(once, not twice), a window only its width, a prefix that is read in both directions all of its own square, and shared
key/value heads save their projections but no scores.

``torch.utils.flop_counter`` counts all T keys for every query, whatever the mask; with T in the place of
:func:`keys_of_layers`, ours is its count to the last FLOP for a batch of one text. Two kernels are exceptions: of a GPU's fused
attention it counts five products backward where four are needed, since the scores are computed anew, and of the CPU's none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmablate.budget import stacks

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


def keys_read(length: int, window: int | None = None, stride: int | None = None) -> float:
    """The mean number of keys a query reads under a causal mask, itself included: of the T queries of a text, T - d have
    a key at distance d, and distances 0, stride, 2 stride, ... below `window` are read."""
    step = stride or 1
    n = ((length if window is None else min(window, length)) - 1) // step + 1
    return n - step * n * (n - 1) / (2 * length)


def forward_products(cfg: RunConfig) -> tuple[float, list[int]]:
    """Multiply-adds of the forward pass: with matrices, for each token, those of experts that it does not meet left out; and
    of each layer, for each pair of a query and a key that it reads. Of several stacks each has its layers, as in
    :func:`keys_of_layers`, and a matrix that not all tokens of a text meet counts for those that do."""
    if cfg.model.n_encoder_layers is not None:
        return stacks.products_of_two(cfg)
    matrices, scores = stack_products(cfg)
    more, further = stacks.generator_products(cfg)
    return matrices + stacks.end_products(cfg) + more, scores + further


def stack_products(cfg: RunConfig) -> tuple[float, list[int]]:
    """The same of the layers of one stack."""
    from lmablate.model import parts
    from lmablate.model.families import layer_order
    from lmablate.model.shapes import attention_shape, ffn_option, ffn_shape, position_shape

    m = cfg.model
    option, settings = parts.resolve(cfg.attention, "attention")
    shape, places = attention_shape(cfg), position_shape(cfg)
    posemb, posemb_settings = parts.resolve(cfg.posemb, "posemb")
    ffn, sizes = ffn_option(cfg), ffn_shape(cfg)
    matrices = m.n_layers * option.weights_per_token(shape, settings)
    matrices += sum(ffn.weights_per_token(sizes, layer=i) for i in layer_order(cfg))
    runs = m.n_layers // (m.n_distinct_layers or m.n_layers)  # of each layer of `places`
    matrices += runs * posemb.weights_per_token(places, posemb_settings)
    a_key = option.products_per_key(shape, settings) + posemb.products_per_key(places, posemb_settings)
    return matrices, [a_key] * m.n_layers


def reaches(cfg: RunConfig) -> list[tuple[int | None, int | None]]:
    """(window, stride) of every layer: the keys a query reads."""
    from lmablate.model import parts
    from lmablate.model.families import layer_order

    option, settings = parts.resolve(cfg.attention, "attention")
    return [tuple(option.reach(block, settings)) for block in layer_order(cfg)]


def keys_of_layers(cfg: RunConfig) -> list[float]:
    """The mean number of keys that a token has read by its queries in each layer in training: itself, what came before it, and
    what the objective lets it read after it. Of two stacks the encoder's layers, the decoder's, and its cross attention, of
    which a token has those of its part; after a model's layers those of its generator."""
    if cfg.model.n_encoder_layers is not None:
        return stacks.keys_of_two(cfg)
    return stack_keys(cfg) + stacks.generator_keys(cfg)


def stack_keys(cfg: RunConfig) -> list[float]:
    """The same of the layers of one stack."""
    from lmablate.objective import objective_of

    objective, length = objective_of(cfg), cfg.model.context_length
    return [keys_read(length, *reach) + objective.keys_ahead(length, *reach) for reach in reaches(cfg)]


def flops_per_token(cfg: RunConfig) -> int:
    """Training FLOPs per token, as defined above, rounded to a whole number."""
    matrices, a_key = forward_products(cfg)
    scores = sum(n * keys for n, keys in zip(a_key, keys_of_layers(cfg), strict=True))
    return round(3 * 2 * (matrices + scores))


SOFTMAX_OPERATIONS = (
    6 + 5
)  # scale, maximum, subtract, exponentiate, sum, divide; back: multiply, sum, subtract, multiply, scale


def softmax_flops(cfg: RunConfig) -> float:
    """FLOPs per token of the softmax of attention, both passes: `SOFTMAX_OPERATIONS` for each score that is read."""
    from lmablate.model.families import generator_of

    heads, generator = cfg.model.n_heads, generator_of(cfg)
    of_generator = 0.0 if generator is None else generator.model.n_heads * sum(stack_keys(generator))
    own = stack_keys(cfg) if generator else keys_of_layers(cfg)
    return SOFTMAX_OPERATIONS * (heads * sum(own) + of_generator)
