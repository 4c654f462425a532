"""Define the base class of all typed parts of a configuration."""

from pydantic import BaseModel, ConfigDict

# Keys of a run's configuration that name its origin and its execution, not its computation.
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
        "counted_params",
        "code",
    }
)


class Settings(BaseModel):
    """A strict (no silent conversion), frozen and closed model: an unknown key is an error, never ignored. Fields carry
    types and no default values, which are only in ``conf/``; an optional field defaults to None."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
