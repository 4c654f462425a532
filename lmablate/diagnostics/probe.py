"""All measurements of a run, at the chosen steps.

Gradients and updates are those of the training step itself, read before clipping and around the optimizer. All else comes from an extra
forward pass, eager, without dropout and gradients, over the same few validation texts in every arm and at every step.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmablate.core.torch_utils import eager
from lmablate.diagnostics import activations, attention, expert_load
from lmablate.diagnostics.gradients import copies, gradient_norms, update_ratios
from lmablate.diagnostics.logits import logit_scale
from lmablate.diagnostics.module_names import Measurements, groups
from lmablate.diagnostics.norms import gains
from lmablate.evaluate.ready import evaluating
from lmablate.objective import IGNORE, Batch, Objective
from lmablate.schema.diagnostics import PREFIX, SETTINGS_KEY, DiagnosticsSettings, requested_diagnostics

if TYPE_CHECKING:
    from torch import nn

    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

PASS = {"activations", "ffn", "attention", "logits", "experts"}  # measures that need the extra pass


def open_probe(cfg: RunConfig, data: TokenData) -> Probe | None:
    """Return the probe of a run; None without diagnostics."""
    settings = requested_diagnostics(cfg)
    return None if settings is None else Probe(settings, cfg, data)


class MeasuredTrainer(Protocol):
    """The part of a trainer that a probe needs."""

    model: TransformerLM
    optimizer: torch.optim.AdamW
    objective: Objective
    compiled: bool

    @property
    def device(self) -> str: ...

    def rows(self, step: int) -> Tensor:
        """Return the tokens of batch `step` on the device."""
        ...

    def backward(self, rows: Tensor) -> Any:
        """Fill the gradients of one step."""
        ...


class Probe:
    """The measurements of one run. `found` collects a step's numbers, which stay on the device until the step's record."""

    def __init__(self, settings: DiagnosticsSettings, cfg: RunConfig, data: TokenData) -> None:
        self.settings, self.cfg, self.data = settings, cfg, data
        self.found: Measurements = {}
        self._places: dict[str, list[nn.Parameter]] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._texts: Batch | None = None

    def due(self, step: int) -> bool:
        return self.settings.due(step, self.cfg.trainer.steps)

    def at_start(self, trainer: MeasuredTrainer) -> dict[str, Any]:
        """Return the numbers before training: gradients of the first batch, and the extra pass."""
        if "gradients" in self.settings.measures:
            with eager(trainer.compiled):
                trainer.backward(trainer.rows(0))
            self.found |= gradient_norms(self.places(trainer.model))
            trainer.optimizer.zero_grad(set_to_none=True)
        return self.record(trainer)

    def before_update(self, model: TransformerLM) -> None:
        """Measure between a step's backward pass and its update; never waits for the device."""
        places = self.places(model)
        if "gradients" in self.settings.measures:
            self.found |= gradient_norms(places)
        if "updates" in self.settings.measures:
            self._before = copies(places)

    def record(self, trainer: MeasuredTrainer) -> dict[str, Any]:
        """Return the numbers after a step, ready for history.jsonl."""
        model = trainer.model
        if self._before:
            self.found |= update_ratios(self.places(model), self._before)
            self._before = {}
        if PASS & set(self.settings.measures):
            with evaluating(model), eager(trainer.compiled):
                self.found |= measure_pass(model, self.texts(trainer), self.settings.measures)
        if "norms" in self.settings.measures:
            self.found |= gains(model)
        found, self.found = self.found, {}
        numbers = torch.stack([value.float() for value in found.values()]).tolist() if found else []
        named = {f"{PREFIX}{name}": number for name, number in zip(found, numbers, strict=True)}
        return {**dict(sorted(named.items())), SETTINGS_KEY: json.dumps(self.settings.model_dump())}

    def places(self, model: TransformerLM) -> dict[str, list[nn.Parameter]]:
        self._places = self._places or groups(model)
        return self._places

    def texts(self, trainer: MeasuredTrainer) -> Batch:
        """Return texts spread evenly over the validation span, read as in validation; whole ones if there are any."""
        if self._texts is None:
            inputs, targets = self.data.val_windows(self.cfg.model.context_length)
            whole = np.flatnonzero((targets != IGNORE).all(-1))
            whole = whole if len(whole) else np.arange(len(inputs))
            evenly = np.linspace(0, len(whole) - 1, min(self.settings.sequences or 1, len(whole)))
            picked = whole[evenly.round().astype(int)]
            some = (torch.from_numpy(np.ascontiguousarray(rows[picked])) for rows in (inputs, targets))
            self._texts = trainer.objective.validation(*some).to(trainer.device)
        return self._texts


@torch.no_grad()
def measure_pass(model: TransformerLM, texts: Batch, measures: Collection[str]) -> Measurements:
    """Run one forward pass over `texts` and return its `measures`."""
    found: Measurements = {}
    with ExitStack() as watches:
        if "activations" in measures or "ffn" in measures:
            stream, units = "activations" in measures, "ffn" in measures
            watches.enter_context(activations.watching(model, found, stream=stream, units=units))
        if "attention" in measures:
            watches.enter_context(attention.watching(model, found))
        if "experts" in measures:
            watches.enter_context(expert_load.watching(model, found))
        hidden = model.hidden(texts.inputs, texts.prefix)
    if "logits" in measures:
        found |= logit_scale(model, hidden)
    return found
