"""Configuration: ``compose(["norm=rms", ...])`` gives a checked, resolved RunConfig."""

from lmablate.config.compose import compose
from lmablate.config.schema import RunConfig

__all__ = ["RunConfig", "compose"]
