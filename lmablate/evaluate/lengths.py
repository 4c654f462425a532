"""One text at several lengths of the windows that it is read through."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmablate.core.errors import ConfigError
from lmablate.evaluate.reach import check_reach
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
    """`text` scored by `model` under each protocol, in the precision that `cfg` trains in; see summary.summarise. With
    `watched`, progress is said on stderr, after that name.

    Every entry scores the same tokens, each once. Raises ConfigError for lengths that are not defined or fit no memory.
    """
    import torch

    check_reach(cfg, plan)
    out = []
    for length, stride in plan:
        if length > len(text.tokens) and length > train_length:
            raise ConfigError(
                f"--lengths: the text {text.name} has {len(text.tokens):,} tokens, fewer than one window of {length:,}: "
                "give more text (--data), or shorter lengths"
            )
        try:
            with precision(cfg, model):
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


def precision(cfg: RunConfig, model: TransformerLM) -> contextlib.AbstractContextManager[Any]:
    """The precision of a GPU's products in training; on a CPU it is a setting of the model's own weights."""
    import torch

    device = model.embedding.weight.device.type
    if device != "cpu" and cfg.trainer.precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return contextlib.nullcontext()
