"""Generation: a text is read and written in chunks, with a KV cache.

``Decoder(model, batch, length)`` is a model and its preallocated cache; ``generate`` samples tokens from it. The layers are those of
training (lmablate/model): attention passes a chunk's keys and values to ``positions.kv_cache`` and reads the result.

    lmablate sample RUN_DIR --prompt "In the beginning" --tokens 100
"""

from lmablate.decoding.cache import LayerCache
from lmablate.decoding.decoder import Decoder
from lmablate.decoding.generate import Sampling, generate

__all__ = ["Decoder", "LayerCache", "Sampling", "generate"]
