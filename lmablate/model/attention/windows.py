"""Attention limited to a part of the earlier tokens, in all layers or in some."""

from typing import Annotated

from pydantic import Field

from lmablate.core.errors import ConfigError
from lmablate.model.attention.base import AttentionShape, Settings
from lmablate.model.attention.heads import HeadAttention
from lmablate.model.attention.scores import EVERYTHING, AttentionSpan
from lmablate.model.types import PositiveFloat, PositiveInt

Pattern = Annotated[str, Field(pattern=r"^[gls]+$")]


class SlidingWindow(HeadAttention):
    """Attention of every layer to the last `window` tokens, itself included (Mistral 7B, arXiv 2310.06825, section 2)."""

    def __init__(self, shape: AttentionShape, *, layer: int, window: PositiveInt, scale: PositiveFloat | None) -> None:
        super().__init__(shape, layer=layer, scale=scale, span=AttentionSpan(window))

    @staticmethod
    def layer_span(layer: int, settings: Settings) -> AttentionSpan:
        return AttentionSpan(settings["window"])


class Interleaved(HeadAttention):
    """Attention with `local_per_global` layers with a window, then one without, repeated (Gemma 2 has 1, Gemma 3 has 5)."""

    def __init__(
        self,
        shape: AttentionShape,
        *,
        layer: int,
        window: PositiveInt,
        local_per_global: PositiveInt,
        scale: PositiveFloat | None,
    ) -> None:
        settings = {"window": window, "local_per_global": local_per_global}
        super().__init__(shape, layer=layer, scale=scale, span=self.layer_span(layer, settings))

    @staticmethod
    def layer_span(layer: int, settings: Settings) -> AttentionSpan:
        n = settings["local_per_global"]
        return EVERYTHING if layer % (n + 1) == n else AttentionSpan(settings["window"])


class Patterned(HeadAttention):
    """Attention whose span in each layer is a letter of `pattern`, which repeats over the depth.

    ``g`` (global) reads everything; ``l`` (local) the last `window` tokens, a band below the diagonal; ``s`` (strided) every
    `window`-th token back from its own (Child et al. 2019, arXiv 1904.10509, section 4.2, whose strided pattern is ``ls``). ``gl`` is
    GPT-Neo, and the alternation of dense and locally banded layers of GPT-3 (arXiv 2005.14165, section 2.1); ``lg`` is Gemma 2.
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        layer: int,
        window: PositiveInt,
        pattern: Pattern,
        scale: PositiveFloat | None,
    ) -> None:
        if len(pattern) > shape.n_layers:
            raise ConfigError(
                f"attention.pattern={pattern} has {len(pattern)} letters, and there are model.n_layers={shape.n_layers}: "
                "give one letter a layer, or fewer, which are repeated"
            )
        if set(pattern) == {"g"}:
            raise ConfigError(
                f"attention.pattern={pattern} has no layer that attention.window={window} acts on: use attention=mha or gqa, "
                "or put in an l (the last window tokens) or an s (every window-th token)"
            )
        settings = {"window": window, "pattern": pattern}
        super().__init__(shape, layer=layer, scale=scale, span=self.layer_span(layer, settings))

    @staticmethod
    def layer_span(layer: int, settings: Settings) -> AttentionSpan:
        letter = settings["pattern"][layer % len(settings["pattern"])]
        return {"g": EVERYTHING, "l": AttentionSpan(settings["window"]), "s": AttentionSpan(stride=settings["window"])}[
            letter
        ]
