"""Checks of an option outside eager training: as a transformers class, and compiled."""

from __future__ import annotations

import logging

import torch

from lmablate.check.finding import Finding, check, fails, holds, skips
from lmablate.check.outputs import gap_text, logits_of
from lmablate.check.small import tokens_for
from lmablate.check.subject import Subject
from lmablate.core.errors import ConfigError
from lmablate.objective import objective_of
from lmablate.training.compile import compile_model

NEAR = 1e-3  # of the largest logit: the tolerance between two exact programs in fp32


@check(
    "export",
    asks="a transformers class gives the same logits, or the export is refused in words",
    cost="lmablate.interop writes another model than was trained",
    mend="let to_hf refuse the option (lmablate/interop/config_mapping.py)",
)
def export(subject: Subject) -> Finding:
    try:
        from lmablate.interop import to_hf

        model = subject.model(5.0).eval()
        theirs = to_hf(model)
    except ConfigError as error:
        return holds(f"refused: {str(error).split(';')[0].removeprefix('to_hf: ')}")
    except ImportError:
        return skips("needs pip install 'lmablate[interop]'")
    tokens = subject.tokens(2)
    ours = logits_of(model, tokens)
    with torch.no_grad():
        logits = theirs(tokens).logits
    if not torch.allclose(logits, ours, rtol=0, atol=NEAR * float(ours.abs().max())):
        return fails(f"{type(theirs).__name__} gives logits that differ by {gap_text(logits, ours)}")
    return holds(type(theirs).__name__)


@check(
    "compile",
    asks="torch.compile takes it and gives the same loss, or the run stays eager",
    cost="runtime.compile=true trains another model",
    mend="no Python side effects and no item() in forward(); shapes_depend_on_data leaves a module out",
)
def compiles(subject: Subject) -> Finding:
    cfg, rows = subject.cfg, tokens_for(subject.cfg)
    model, objective = subject.model(), objective_of(cfg)
    batch = objective.batch(rows[:, :-1], rows[:, 1:], data_seed=cfg.data_seed, step=0)

    def step() -> torch.Tensor:
        loss = objective(model.train(), *batch).objective
        loss.backward()
        return loss.detach()

    eager = step()
    log = logging.getLogger("lmablate.training.compile")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        why = compile_model(model, cfg, step, objective)
    finally:
        log.setLevel(level)
    if why is not None:
        return holds(f"stays eager: {why}")
    compiled = step()
    if abs(compiled - eager) > 1e-4 * abs(eager):
        return fails(f"loss {float(compiled):.5f} compiled, {float(eager):.5f} eager")
    return holds()
