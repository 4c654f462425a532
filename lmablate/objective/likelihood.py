"""The cross entropy of the targets that count, from logits or from the head's input."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.objective.chunked_cross_entropy import CHUNK, linear_cross_entropy, worth_chunking
from lmablate.objective.language_model import LanguageModel

IGNORE = -100  # a target that does not count


class Loss(NamedTuple):
    """The `objective` that the optimizer minimises, and `nats`, the cross entropy per target: scalars, or ``[K]`` with members."""

    objective: Tensor
    nats: Tensor


def likelihood(model: nn.Module, inputs: Tensor, targets: Tensor, prefix: Tensor | None, z_loss: Tensor | None) -> Loss:
    """Return the loss on one batch (see base.Batch), with one `z_loss` per member. A model with logits for the last tokens of a text
    only (its decoder's) has targets there only."""
    given = (inputs,) if prefix is None else (inputs, prefix)
    rows = targets.shape[-2] * targets.shape[-1]
    # The chunked loss does not support a bias of the logits.
    if _has_head(model) and model.head.bias is None and worth_chunking(rows, vocab_size(model)):
        hidden = model.hidden(*given)
        return Loss(*_chunked(model, hidden, targets[..., -hidden.shape[-2] :], z_loss))
    logits = model(*given).float()
    return cross_entropy(logits, targets[..., -logits.shape[-2] :], z_loss)


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: Tensor | None) -> Loss:
    """Return the loss from float logits ``[..., B, T, V]``."""
    at, share = torch.ops.lmablate.rows(targets, IGNORE)
    nats, log2_z = _RowLosses.apply(logits, at, share)
    # Summed within a member, so that the order is the same solo and in a gang.
    nats = nats.flatten(-2).sum(-1)
    return Loss(nats, nats) if z_loss is None else Loss(nats + z_loss * log2_z.flatten(-2).sum(-1), nats)


def _rows(targets: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Return for each target ``[..., B, T]`` an id in the vocabulary, and its weight in the mean of its member: 0 if it does not count."""
    kept = targets != ignore
    return targets.masked_fill(~kept, 0).contiguous(), kept.float() / kept.flatten(-2).sum(-1)[..., None, None]


# An operator, so that a compiler computes this once for each row, and not again for every logit.
_LIBRARY = torch.library.Library("lmablate", "FRAGMENT")
_LIBRARY.define("rows(Tensor targets, int ignore) -> (Tensor, Tensor)")
_LIBRARY.impl("rows", _rows, "CompositeExplicitAutograd")


@torch.library.register_fake("lmablate::rows", lib=_LIBRARY)
def _(targets: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    return targets.new_empty(targets.shape), targets.new_empty(targets.shape, dtype=torch.float32)


class _RowLosses(torch.autograd.Function):
    """The summands of ``mean(log Z - logit of target)`` and ``mean(log^2 Z)``, ``[..., V] -> [...]``. With p the softmax, the gradient of
    the first is ``share (p - onehot)``, of the second ``2 share log Z p``: both together are one pass over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, at: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        log_z, at = logits.logsumexp(-1), at.unsqueeze(-1)
        ctx.save_for_backward(logits, at, share, log_z)
        return (log_z - logits.gather(-1, at).squeeze(-1)) * share, log_z.square() * share

    @staticmethod
    def backward(ctx: Any, of_nats: Tensor, of_log2_z: Tensor) -> tuple[Tensor, None, None]:
        logits, at, share, log_z = ctx.saved_tensors
        target = (of_nats * share).unsqueeze(-1)
        p = (logits - log_z.unsqueeze(-1)).exp() * (target + (2 * of_log2_z * log_z * share).unsqueeze(-1))
        if torch.compiler.is_compiling():  # which fuses a comparison, and no scatter
            hit = torch.arange(p.shape[-1], device=p.device) == at
            return torch.where(hit, p - target, p), None, None
        return p.scatter_add_(-1, at, -target), None, None


def vocab_size(model: LanguageModel) -> int:
    """Return the number of logits per token."""
    return model.embedding.weight.shape[-2]


def _has_head(model: Any) -> TypeGuard[LanguageModel]:
    """Return True if hidden states and logits can be computed separately."""
    return hasattr(model, "hidden") and hasattr(model, "head")


def _chunked(model: LanguageModel, hidden: Tensor, targets: Tensor, z_loss: Tensor | None) -> tuple[Tensor, Tensor]:
    head = model.embedding if model.head.proj is None else model.head.proj
    return linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        z_loss=z_loss,
        soft_cap=model.final_soft_cap,
        compute_dtype=head.compute_dtype,
        ignore_index=IGNORE,
    )


def summed_nats(model: LanguageModel, hidden: Tensor, targets: list[Tensor]) -> list[float]:
    """Return the summed cross entropy of ``[N, D]`` hidden states for each of `targets`, with no more logits at once than in training."""
    rows = CHUNK if worth_chunking(len(hidden), vocab_size(model)) else len(hidden)
    sums: list[list[Tensor]] = [[] for _ in targets]
    for first in range(0, len(hidden), rows):
        log_p = F.log_softmax(model.logits(hidden[first : first + rows]).float(), -1)
        for mine, y in zip(sums, targets, strict=True):
            mine.append(F.nll_loss(log_p, y[first : first + rows], ignore_index=IGNORE, reduction="sum"))
    return [float(torch.stack(mine).sum()) for mine in sums]
