"""The model: one module per axis, and one factory that combines them."""

from lmablate.model.factory import build_model

__all__ = ["build_model"]
