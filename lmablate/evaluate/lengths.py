"""One text at several window lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.evaluate.reach import check_lengths
from lmablate.evaluate.scoring import score
from lmablate.evaluate.summary import summarise
from lmablate.evaluate.text import Text
from lmablate.schema.evaluation_windows import Protocol

if TYPE_CHECKING:
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig


def at_lengths(
    model: TransformerLM,
    cfg: RunConfig,
    text: Text,
    eot_id: int,
    plan: Sequence[Protocol],
    *,
    train_length: int,
    watched: str = "",
) -> list[dict[str, Any]]:
    """Score `text` under each protocol in the precision of training; return a summary each (see summary.summarise).

    Every entry scores the same tokens, each once. With `watched`, progress is shown on stderr under that name. Raises ConfigError for
    lengths that are undefined or exceed the memory.
    """
    import torch

    check_lengths(cfg, plan)
    out = []
    for length, stride in plan:
        if length > len(text.tokens) and length > train_length:
            raise ConfigError(
                f"--lengths: the text {text.name} has {len(text.tokens):,} tokens, fewer than one window of {length:,}: "
                "give more text (--data), or shorter lengths"
            )
        try:
            scored = score(
                model,
                text.tokens,
                first=eot_id,
                length=length,
                stride=stride,
                pass_tokens=(cfg.runtime.microbatch_size or cfg.trainer.batch_size) * train_length,
                device=model.embedding.weight.device.type,
                what=watched and f"{watched}, windows of {length:,}, passes",
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "memory" not in str(error):
                raise
            raise ConfigError(
                f"--lengths: windows of {length:,} tokens do not fit into memory here: ask for shorter ones"
            ) from error
        out.append(summarise(scored, n_bytes=text.n_bytes, length=length, stride=stride, train_length=train_length))
    return out
