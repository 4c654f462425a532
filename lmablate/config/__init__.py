"""Configuration: ``compose(["norm=rms", ...])`` gives a checked, resolved RunConfig."""

from lmablate.config.compose import compose
from lmablate.schema.run_config import RunConfig

__all__ = ["RunConfig", "compose"]
