"""How large the logits are, and their normaliser Z."""

from __future__ import annotations

import torch
from torch import Tensor

from lmablate.diagnostics.module_names import Found
from lmablate.model.transformer import TransformerLM
from lmablate.objective.chunked_cross_entropy import CHUNK


@torch.no_grad()
def logit_scale(model: TransformerLM, hidden: Tensor) -> Found:
    """From what the head reads, ``[..., D]``: ``logits/std``, the root mean over tokens of the variance over the vocabulary
    (the softmax does not see a common shift); ``logits/max``, the largest magnitude; ``logits/log_z``, the mean of
    ``log Z = log sum exp``; ``logits/log_z2``, the mean of its square, which z-loss holds down (PaLM, arXiv 2204.02311,
    section 5). Soft caps included.
    """
    variances, largest, log_z = [], [], []
    for rows in hidden.flatten(0, -2).split(CHUNK):
        logits = model.logits(rows).float()
        variances.append(logits.var(-1, correction=0))
        largest.append(logits.abs().max())
        log_z.append(logits.logsumexp(-1))
    z = torch.cat(log_z)
    return {
        "logits/std": torch.cat(variances).mean().sqrt(),
        "logits/max": torch.stack(largest).max(),
        "logits/log_z": z.mean(),
        "logits/log_z2": z.square().mean(),
    }
