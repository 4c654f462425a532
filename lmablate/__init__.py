"""lmablate: architecture ablations of language models."""

__version__ = "0.2.0"
