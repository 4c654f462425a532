"""Constraints of a task (``data=mqar``) on the configuration: no tokenizer, a context that fits, left to right."""

from typing import Any

from lmablate.core.errors import ConfigError
from lmablate.data.tasks.store import check_examples
from lmablate.schema.run_config import RunRequest
from lmablate.schema.tasks import SOURCES, Skill


def without_tokenizer(raw: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return `raw`, the values of a request, without the default tokenizer if the data are a task with tokens of its own.

    Raises ConfigError if a tokenizer was given; `given` maps the keys of the command line to values."""
    if raw.get("data", {}).get("source") not in SOURCES:
        return raw
    name = raw["choices"].get("data")
    for key, value in given.items():
        if key == "tokenizer" or key.startswith("tokenizer."):
            raise ConfigError(
                f"{key}={value} has no effect beside data={name}, a task with tokens of its own: leave it out "
                "(data.vocab_size sets how many there are)"
            )
    choices = {group: option for group, option in raw["choices"].items() if group != "tokenizer"}
    return {**raw, "tokenizer": None, "choices": choices}


def check_task(request: RunRequest) -> None:
    """Raise ConfigError if a task's examples do not fit the context or the objective, or a text has no tokenizer."""
    data = request.data
    if not isinstance(data, Skill):
        if request.tokenizer is None:
            raise ConfigError(f"data={data.source} is text and needs a tokenizer: tokenizer=bpe, bytes or pretrained")
        return
    check_examples(data, request.model.context_length)
    if request.runtime.evaluate_lengths is not None:
        raise ConfigError(
            f"runtime.evaluate_lengths={request.runtime.evaluate_lengths} reads a text at other lengths, and data={data.source} has "
            "none: leave it out (data.length_factors is the key of the tasks that have longer examples)"
        )
    if request.objective.kind != "causal":
        raise ConfigError(
            f"objective={request.objective.kind} makes targets of its own, and data={data.source} brings the answers that are "
            "scored: use objective=causal"
        )
