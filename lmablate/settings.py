"""The base of every typed part of a configuration."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict (no silent conversion), frozen, and closed: an unknown key is an error, never ignored.

    Fields carry types and no default values, which live once, in ``conf/``; a field that may be absent defaults to None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
