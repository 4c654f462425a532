"""The model: one file an axis, one factory that puts them together."""

from lmablate.model.factory import build_model

__all__ = ["build_model"]
