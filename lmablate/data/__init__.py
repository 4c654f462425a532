"""Text to tokens: sources, tokenizers, the token store, and batches as a pure function of the step."""

from lmablate.core.errors import DataError
from lmablate.data.build import prepare
from lmablate.data.tokens import TokenData

__all__ = ["DataError", "TokenData", "prepare"]
