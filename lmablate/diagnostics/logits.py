"""Sizes of the logits and of their normaliser Z."""

from __future__ import annotations

import torch
from torch import Tensor

from lmablate.diagnostics.module_names import Measurements
from lmablate.model.transformer import TransformerLM
from lmablate.objective.chunked_cross_entropy import CHUNK


@torch.no_grad()
def logit_scale(model: TransformerLM, hidden: Tensor) -> Measurements:
    """Return statistics of the logits from the head's input, ``[..., D]``, soft caps included.

    ``logits/std``: the root mean over tokens of the variance over the vocabulary (softmax ignores a common shift). ``logits/max``: the
    largest magnitude. ``logits/log_z``: the mean of ``log Z = log sum exp``. ``logits/log_z2``: the mean of its square, which z-loss
    reduces (PaLM, arXiv 2204.02311, section 5).
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
