"""Parameters and FLOPs outside the layers: embedding, head, and the modules next to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig


@dataclass(frozen=True)
class StackCost:
    """Parameters of `tables` (of tokens and segments, an untied head, its bias) and of the `rest`, and multiply-adds of matrices per
    token. Costs add."""

    tables: int = 0
    rest: int = 0
    matmuls: int = 0

    def __add__(self, other: StackCost) -> StackCost:
        return StackCost(self.tables + other.tables, self.rest + other.rest, self.matmuls + other.matmuls)


def _matrix(weights: int, vectors: int = 0) -> StackCost:
    """The cost of weights that every token uses, and of parameters outside matrices."""
    return StackCost(rest=weights + vectors, matmuls=weights)


def ends(cfg: RunConfig) -> StackCost:
    """Return the cost of the token table, the map of its rows, the embedding norm, and the head with the modules before it."""
    m = cfg.model
    table = (m.embedding_dim or m.d_model) * (m.vocab_size + (m.segments or 0))
    return StackCost(tables=table) + embedding_norm(cfg) + row_map(cfg) + head(cfg)


def embedding_norm(cfg: RunConfig) -> StackCost:
    """Return the cost of the embedding norm, if there is one."""
    from lmablate.model import components

    m = cfg.model
    return StackCost(rest=components.count(cfg.norm, "norm", m.embedding_dim or m.d_model) if m.embedding_norm else 0)


def row_map(cfg: RunConfig) -> StackCost:
    """Return the cost of the map from token rows to the width of the model, if they are narrower."""
    m = cfg.model
    return _matrix(m.embedding_dim * m.d_model, m.d_model * m.biases.mlp) if m.embedding_dim else StackCost()


def head(cfg: RunConfig) -> StackCost:
    """Return the cost of the head, and of the readout or transform before it."""
    from lmablate.model import components
    from lmablate.model.dims import detects, has_readout
    from lmablate.model.output_heads import Detector, LastState, Transform

    m, bias = cfg.model, cfg.model.biases.mlp
    total, width = StackCost(), m.d_model
    if has_readout(cfg):
        one_norm = components.count(cfg.norm, "norm", m.d_model)
        vectors = LastState.n_bias_and_gain_params(m.d_model, one_norm=one_norm, bias=bias)
        total += _matrix(LastState.matmul_params(m.d_model), vectors)
    if detects(cfg):
        return total + _matrix(Detector.matmul_params(m.d_model), Detector.n_bias_and_gain_params(m.d_model, bias=bias))
    if m.head_transform:
        width = m.embedding_dim or m.d_model
        one_norm = components.count(cfg.norm, "norm", width)
        total += _matrix(m.d_model * width, Transform.n_bias_and_gain_params(width, one_norm=one_norm, bias=bias))
    weights = m.vocab_size * width
    return total + StackCost(weights * (not m.tie_embeddings) + m.vocab_size * m.biases.head, 0, weights)
