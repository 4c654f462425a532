"""Text to tokens: sources, tokenizers, the token store, and batches as a pure function of the step."""

from lmablate.data.build import prepare
from lmablate.data.tokens import TokenData
from lmablate.errors import DataError

__all__ = ["DataError", "TokenData", "prepare"]
