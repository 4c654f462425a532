"""Attention of a decoder to the states of an encoder."""

from torch import Tensor

from lmablate.model.attention.base import AttentionShape, Settings
from lmablate.model.attention.heads import HeadAttention
from lmablate.model.attention.scores import EVERYTHING, attend
from lmablate.model.posemb import AttentionContext
from lmablate.model.primitives import apply_all
from lmablate.model.types import PositiveFloat


class CrossAttention(HeadAttention):
    """Queries from the decoder, keys and values from the encoder's states (Vaswani et al. 2017, section 3.2.3), with the heads, biases
    and norms of the model's attention, whatever its option. It uses no mask and no positions, since those belong to two texts."""

    def __init__(self, shape: AttentionShape, *, layer: int, scale: PositiveFloat | None) -> None:
        super().__init__(shape, layer=layer, scale=scale, span=EVERYTHING)

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        source = positions.source
        assert source is not None, "cross attention without a source"
        q = self.heads(self.q_proj(x), self.q_norm)
        k, v = apply_all(source, self.k_proj, self.v_proj)
        k, v = self.heads(k, self.k_norm), self.heads(v, self.v_norm)
        group = self.shape.n_heads // self.shape.n_kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
        y = attend(
            q,
            k,
            v,
            bias=None,
            span=EVERYTHING,
            scale=self.scale,
            soft_cap=self.shape.soft_cap,
            dropout=self.shape.dropout if self.training else 0.0,
            may_read=True,
        )
        return self.output(y, x)

    @classmethod
    def matmul_params(cls, shape: AttentionShape, settings: Settings) -> int:
        """Return the multiply-adds per token of the decoder."""
        return 2 * shape.d_model * shape.n_heads * shape.head_dim

    @classmethod
    def source_matmul_params(cls, shape: AttentionShape) -> int:
        """Return the multiply-adds per token of the encoder."""
        return 2 * shape.d_model * shape.n_kv_heads * shape.head_dim
