"""Parameter counts in closed form, summed from those of the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig


class Parameters(NamedTuple):
    """Learned numbers, each counted once. `non_embedding`: all but the token table, the position table, an untied
    head and its bias; a tied head is the token table."""

    total: int
    non_embedding: int

    @property
    def embedding(self) -> int:
        """The token table, the position table and an untied head."""
        return self.total - self.non_embedding

    @property
    def active(self) -> int:
        """Those that take part in the forward pass of a text. In a dense model that is every one."""
        return self.total


def ffn_params(d_model: int, d_ff: int, *, gated: bool, bias: bool) -> int:
    """Weights (and biases) of one feed-forward network."""
    from lmablate.model.ffn import network

    ffn = network(gated)
    return ffn.weights_per_token(d_model, d_ff) + ffn.n_vector_params(d_model, d_ff, bias=bias)


def attention_params(cfg: RunConfig) -> int:
    """Weights, biases and gains of one attention branch, by the closed forms that stand beside its class."""
    from lmablate.model import parts
    from lmablate.model.shapes import attention_shape

    option, settings = parts.resolve(cfg.attention, "attention")
    shape = attention_shape(cfg)
    total = option.weights_per_token(shape, settings) + option.n_vector_params(shape, settings)
    for name, widths in zip(("qk_norm", "v_norm"), option.norm_widths(shape, settings), strict=True):
        norm = getattr(cfg.stability, name)
        total += sum(parts.count(norm, f"stability.{name}", width) for width in widths) if norm else 0
    return total


def parameters(cfg: RunConfig) -> Parameters:
    """Parameter counts by closed form, without building anything."""
    from lmablate.model import parts
    from lmablate.model.readout import LastState
    from lmablate.model.shapes import has_final_norm, has_readout, position_shape

    m = cfg.model
    one_norm = parts.count(cfg.norm, "norm", m.d_model)
    position = parts.target(cfg.norm_position, "norm_position")
    layout = parts.target(cfg.block_layout, "block_layout")
    positions = parts.count(cfg.posemb, "posemb", position_shape(cfg))
    position_table = positions if parts.target(cfg.posemb, "posemb").is_token_table else 0

    block = attention_params(cfg)
    block += ffn_params(m.d_model, m.d_ff, gated=cfg.activation.gated, bias=m.biases.mlp)
    block += one_norm * position.norms_per_branch * layout.n_branches
    ends = one_norm * (has_final_norm(cfg) + bool(m.embedding_norm))
    if has_readout(cfg):
        ends += LastState.weights_per_token(m.d_model)
        ends += LastState.n_vector_params(m.d_model, one_norm=one_norm, bias=m.biases.mlp)
    non_embedding = m.n_layers * block + ends + positions - position_table
    tables = m.vocab_size * (m.d_model * (1 if m.tie_embeddings else 2) + m.biases.head) + position_table
    return Parameters(non_embedding + tables, non_embedding)
