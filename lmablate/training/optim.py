"""AdamW and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from lmablate.model.primitives import Embedding

if TYPE_CHECKING:
    from lmablate.schema.training_config import OptimSettings, ScheduleSettings


def build_optimizer(model: nn.Module, optim: OptimSettings) -> torch.optim.AdamW:
    """Return fused AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) over the parameters of `model`. Matrices decay; gains and
    biases do not, whatever their names, nor do lookup tables with ``decay_embeddings=False`` (OLMo 2, arXiv 2501.00656, section 3.4).

    With eta_t the schedule's factor, a step subtracts ``eta_t lr weight_decay w`` from a weight, as in torch. With
    ``decay=independent`` it subtracts ``eta_t weight_decay w``, as in the paper's algorithm 2: the best decay then depends less on the
    learning rate (Wortsman et al. 2023, arXiv 2309.14322, section 3.2.2).
    """
    spared = set()
    if optim.decay_embeddings is False:
        spared = {id(p) for module in model.modules() if isinstance(module, Embedding) for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in spared]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in spared]
    decay = (
        optim.weight_decay / optim.lr if optim.decay == "independent" else optim.weight_decay
    )  # torch multiplies by lr
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )


def lr_factor(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate at optimizer step `step` (from 0) of `steps`.

    Warmup rises linearly and reaches 1 at its last step. The decay starts from 1 and would reach `final_fraction` one step after the
    last, so that no step has a rate of 0.
    """
    warmup = schedule.warmup_steps or 0
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    final = schedule.final_fraction or 0.0
    start = warmup
    if schedule.kind == "wsd":
        start = max(warmup, steps - round((schedule.decay_fraction or 0.0) * steps))
    if step < start:
        return 1.0
    progress = (step - start) / (steps - start)
    if schedule.kind == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    return final + (1 - final) * (1 - progress)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
