"""The base of every typed part of a configuration."""

from pydantic import BaseModel, ConfigDict

# Of a run's configuration: what it was asked for by and how it is carried out, and not what it computes.
BOOKKEEPING = frozenset(
    {
        "choices",
        "overrides",
        "runtime",
        "diagnostics",
        "results_dir",
        "sweep",
        "arm",
        "stage",
        "branches",
        "published_vocab_size",
        "solved",
        "code",
    }
)


class Settings(BaseModel):
    """Strict (no silent conversion), frozen, and closed: an unknown key is an error, never ignored.

    Fields carry types and no default values, which live once, in ``conf/``; a field that may be absent defaults to None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
