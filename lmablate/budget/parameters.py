"""Parameter counts in closed form, summed over the parts."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, NamedTuple

from lmablate.budget import stacks
from lmablate.core.source_code import is_shipped

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


class _Counts(NamedTuple):
    total: int
    non_embedding: int


class Parameters(_Counts):
    """Parameter counts, each parameter once. `non_embedding`: all but the token table, the position table, an untied head and its bias;
    a tied head is the token table. `idle`: those of experts that a token does not use."""

    idle: int

    def __new__(cls, total: int, non_embedding: int, idle: int = 0) -> Parameters:
        counts = super().__new__(cls, total, non_embedding)
        counts.idle = idle
        return counts

    @property
    def embedding(self) -> int:
        """Return the count of the token table, the position table and an untied head."""
        return self.total - self.non_embedding

    @property
    def active(self) -> int:
        """Return the count that a token uses; all in a dense model."""
        return self.total - self.idle

    @property
    def active_non_embedding(self) -> int:
        """Return the count that a token uses, without tables and head: what tokens per parameter count."""
        return self.non_embedding - self.idle


def ffn_params(d_model: int, d_ff: int, *, gated: bool, bias: bool) -> int:
    """Return the number of weights (and biases) of one feed-forward network."""
    from lmablate.model.ffn import network

    ffn = network(gated)
    return ffn.matmul_params(d_model, d_ff) + ffn.n_bias_and_gain_params(d_model, d_ff, bias=bias)


def attention_params(cfg: RunConfig, layer: int = 0) -> int:
    """Return the number of weights, biases and gains of one attention branch, by its closed forms or by building it."""
    from lmablate.budget import measured
    from lmablate.model import components
    from lmablate.model.dims import attention_shape

    option, settings = components.resolve(cfg.attention, "attention")
    if not measured.states(option, measured.PARAMS["attention"]):
        return measured.attention_params(cfg, layer)
    shape = attention_shape(cfg)
    total = option.matmul_params(shape, settings) + option.n_bias_and_gain_params(shape, settings)
    return total + _head_norms(cfg, option.norm_widths(shape, settings))


def _head_norms(cfg: RunConfig, widths: tuple[list[int], list[int]]) -> int:
    """The parameters of the norms of queries and keys, and of values, of these widths."""
    from lmablate.model import components

    total = 0
    for name, own in zip(("qk_norm", "v_norm"), widths, strict=True):
        norm = getattr(cfg.stability, name)
        total += sum(components.count(norm, f"stability.{name}", width) for width in own) if norm else 0
    return total


def _cross_params(cfg: RunConfig) -> int:
    """The parameters of one layer's cross attention, with the norms of its branch."""
    from lmablate.model import components
    from lmablate.model.attention import CrossAttention
    from lmablate.model.dims import attention_shape

    shape = attention_shape(cfg)
    total = CrossAttention.matmul_params(shape, {}) + CrossAttention.source_matmul_params(shape)
    total += CrossAttention.n_bias_and_gain_params(shape, {}) + _head_norms(cfg, CrossAttention.norm_widths(shape, {}))
    if getattr(components.target(cfg.block_layout, "block_layout"), "in_turn", False):
        position = components.target(cfg.norm_position, "norm_position")
        total += position.norms_per_branch * components.count(cfg.norm, "norm", cfg.model.d_model)
    return total


class LayerCounts(NamedTuple):
    """Parameter counts of a stack: `layers` with the final norm and learned positions, a position `table`, and `idle` ones of experts
    that a token does not use."""

    layers: int
    table: int
    idle: int


def stack_params(cfg: RunConfig) -> LayerCounts:
    """Return the counts of one stack of layers, without embedding and head."""
    from lmablate.budget import measured
    from lmablate.model import components
    from lmablate.model.dims import ffn_option, ffn_shape, has_final_norm, position_shape

    m = cfg.model
    one_norm = components.count(cfg.norm, "norm", m.d_model)
    positions = components.count(cfg.posemb, "posemb", position_shape(cfg))
    table = positions if components.target(cfg.posemb, "posemb").is_token_table else 0

    ffn, sizes, layers = ffn_option(cfg), ffn_shape(cfg), range(m.n_distinct_layers or m.n_layers)
    branches = len(layers) * shell_params(cfg) + sum(attention_params(cfg, i) for i in layers)
    fn = components.target(cfg.activation.fn, "activation.fn")
    if measured.states(type(ffn), measured.PARAMS["ffn"]) and not inspect.isclass(fn):
        branches += sum(ffn.n_params(sizes, layer=i) for i in layers)
    else:  # an activation that is a module may have weights
        branches += sum(measured.ffn_params(cfg, i) for i in layers)
    idle = sum(ffn.n_idle(sizes, layer=i) for i in layers)
    return LayerCounts(branches + one_norm * has_final_norm(cfg) + positions - table, table, idle)


def shell_params(cfg: RunConfig) -> int:
    """Return the parameter count of a block without its branches: that of its norms."""
    from lmablate.budget import measured
    from lmablate.model import components

    position = components.target(cfg.norm_position, "norm_position")
    layout = components.target(cfg.block_layout, "block_layout")
    if not (is_shipped(position) and is_shipped(layout)):
        return measured.shell_params(cfg)
    return components.count(cfg.norm, "norm", cfg.model.d_model) * position.norms_per_branch * layout.n_branches


def parameters(cfg: RunConfig) -> Parameters:
    """Return the parameter counts by closed form, without building a model."""
    from lmablate.model.multi_stack import decoder_of, encoder_of, generator_of

    two = cfg.model.n_encoder_layers is not None
    found = [stack_params(decoder_of(cfg)), stack_params(encoder_of(cfg))] if two else [stack_params(cfg)]
    rest_of_model = stacks.ends(cfg)
    if two:  # the encoder has an embedding norm if the decoder has one
        rest_of_model += stacks.StackCost(rest=cfg.model.n_layers * _cross_params(cfg)) + stacks.embedding_norm(cfg)
    if (own := generator_of(cfg)) is not None:  # it shares the token rows
        rest_of_model += stacks.row_map(own) + stacks.head(own) + stacks.StackCost(rest=stack_params(own).layers)
    rest = rest_of_model.rest + sum(each.layers for each in found)
    tables = rest_of_model.tables + sum(each.table for each in found)
    return Parameters(rest + tables, rest, sum(each.idle for each in found))
