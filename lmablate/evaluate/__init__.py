"""Evaluation on unseen text: at the end of training, and later on any text and at any length.

``lmablate evaluate RUN [RUN ...] [--data FILES] [--lengths 1,2,4,8,16] [--stride N]``
"""

from lmablate.evaluate.validation import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
