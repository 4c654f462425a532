"""Pure arithmetic: widths that match, parameters and FLOPs in closed form.

What is counted. *Parameters*: every learned number once; a tied head is counted with the token table. *Non-embedding*:
all but the token table, the position table and an untied head. *FLOPs per token*: the matrix products of training,
forward and backward (three times the forward), a multiply-add as two; attention over the keys a token really reads, so
causal attention counts half the square and a window only its width. Norms, softmax and element-wise work are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lmablate.config.schema import ModelSettings, RunConfig


class Parameters(NamedTuple):
    total: int
    non_embedding: int


def ffn_params(d_model: int, d_ff: int, *, gated: bool, bias: bool) -> int:
    """Weights (and biases) of one feed-forward network."""
    hidden = 2 if gated else 1
    return (hidden + 1) * d_model * d_ff + (hidden * d_ff + d_model if bias else 0)


def attention_params(m: ModelSettings, *, qk_norm: int = 0) -> int:
    """Weights (and biases) of one attention branch; `qk_norm` is the parameter count of one head norm."""
    inner, inner_kv = m.n_heads * m.head_dim, m.n_kv_heads * m.head_dim
    matrices = 2 * m.d_model * inner + 2 * m.d_model * inner_kv
    biases = inner + 2 * inner_kv + m.d_model if m.bias else 0
    return matrices + biases + 2 * qk_norm


def matched_width(target: float, params_of: Callable[[int], int], guess: float) -> int:
    """The FFN width near `guess` whose parameter count is nearest `target`.

    A multiple of 8, which every kernel likes, or of 4 where 8 misses the target by more than 1 %. Rounding to 256, as is
    common elsewhere, adds 50 % at width 128.
    """
    best = 0
    for step in (8, 4):
        below = max(step, int(guess // step) * step)
        best = min((below, below + step), key=lambda width: abs(params_of(width) - target))
        if abs(params_of(best) - target) <= 0.01 * target:
            break
    return best


def ff_width(d_model: int, *, ff_ratio: float, gated: bool, bias: bool, gated_scale: float | None) -> int:
    """d_ff for a dense-equivalent ratio.

    Plain: ``ff_ratio * d_model``, to a multiple of 8 (or 4). Gated: the width with the parameters of the plain FFN that
    would be built (about 2/3 of its width, Shazeer 2020, section 3), or `gated_scale` times its width (1.0: equal width).
    """

    def nearest(width: float, gated: bool) -> int:
        hidden = 2 if gated else 1
        target = (hidden + 1) * d_model * width + (hidden * width + d_model if bias else 0)
        return matched_width(target, lambda w: ffn_params(d_model, w, gated=gated, bias=bias), width)

    plain = nearest(ff_ratio * d_model, gated=False)
    if not gated:
        return plain
    if gated_scale is not None:
        return nearest(gated_scale * plain, gated=True)
    target = ffn_params(d_model, plain, gated=False, bias=bias)
    return matched_width(target, lambda w: ffn_params(d_model, w, gated=True, bias=bias), 2 / 3 * plain)


def parameters(cfg: RunConfig) -> Parameters:
    """Parameter counts by closed form, without building anything."""
    from lmablate.model import parts
    from lmablate.model.posemb import PositionShape

    m = cfg.model
    one_norm = parts.count(cfg.norm, "norm", m.d_model)
    head_norm = parts.count(cfg.stability.qk_norm, "stability.qk_norm", m.head_dim) if cfg.stability.qk_norm else 0
    position = parts.target(cfg.norm_position, "norm_position")
    layout = parts.target(cfg.block_layout, "block_layout")
    shape = PositionShape(m.d_model, m.n_heads, m.head_dim, m.context_length)
    positions = parts.count(cfg.posemb, "posemb", shape)
    position_table = positions if parts.target(cfg.posemb, "posemb").is_token_table else 0

    block = attention_params(m, qk_norm=head_norm)
    block += ffn_params(m.d_model, m.d_ff, gated=cfg.activation.gated, bias=m.bias)
    block += one_norm * position.norms_per_branch * layout.n_branches
    final = one_norm if position.needs_final_norm else 0
    non_embedding = m.n_layers * block + final + positions - position_table
    tables = m.vocab_size * m.d_model * (1 if m.tie_embeddings else 2) + position_table
    return Parameters(non_embedding + tables, non_embedding)


def keys_read(length: int, window: int | None) -> float:
    """The mean number of keys a query reads under a causal mask, itself included."""
    w = length if window is None else min(window, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


def flops_per_token(cfg: RunConfig) -> int:
    """Training FLOPs per token, as defined above, rounded to a whole number."""
    from lmablate.model import parts

    m = cfg.model
    option, settings = parts.resolve(cfg.attention, "attention")
    windows = [option.window_of(layer, **settings) for layer in range(m.n_layers)]
    hidden = 3 if cfg.activation.gated else 2
    matrices = 2 * m.d_model * (m.n_heads + m.n_kv_heads) * m.head_dim + hidden * m.d_model * m.d_ff
    products = m.n_layers * matrices + m.vocab_size * m.d_model
    scores = sum(2 * m.n_heads * m.head_dim * keys_read(m.context_length, window) for window in windows)
    return round(3 * 2 * (products + scores))
