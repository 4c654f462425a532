"""Generation: a text is read and written piece by piece, and what later tokens need of earlier ones is kept.

``Decoder(model, batch, length)`` is a model and its preallocated cache; ``generate`` draws tokens from it. The layers are those
of training (lmablate/model): attention hands what it makes of a piece to ``positions.past`` and reads what that gives back.

    python -m lmablate.sample RUN_DIR --prompt "In the beginning" --tokens 100
"""

from lmablate.decoding.cache import LayerCache
from lmablate.decoding.decoder import Decoder
from lmablate.decoding.generate import Draw, generate

__all__ = ["Decoder", "Draw", "LayerCache", "generate"]
