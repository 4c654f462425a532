"""All measurements of a run, at the steps asked for.

Gradients and updates are those of the training step itself, read before clipping and around the optimizer. Everything else
comes from an extra forward pass, eager, without dropout and without gradients, over the same few texts of the validation span
in every arm and at every step.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lmablate.core.torch_utils import eager
from lmablate.diagnostics import activations, attention, expert_load
from lmablate.diagnostics.gradients import copies, gradient_norms, update_ratios
from lmablate.diagnostics.logits import logit_scale
from lmablate.diagnostics.module_names import Found, groups
from lmablate.diagnostics.norms import gains
from lmablate.objective import IGNORE, Batch, Objective
from lmablate.schema.diagnostics import PREFIX, SETTINGS_KEY, DiagnosticsSettings, requested_diagnostics

if TYPE_CHECKING:
    from torch import nn

    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

PASS = {"activations", "ffn", "attention", "logits", "experts"}  # what needs the extra pass


def open_probe(cfg: RunConfig, data: TokenData) -> Probe | None:
    """The probe of a run; None where nothing is asked for."""
    asked = requested_diagnostics(cfg)
    return None if asked is None else Probe(asked, cfg, data)


class Measured(Protocol):
    """What a probe needs of the trainer whose run it measures."""

    model: TransformerLM
    optimizer: torch.optim.AdamW
    objective: Objective
    compiled: bool

    @property
    def device(self) -> str: ...

    def rows(self, step: int) -> Tensor:
        """Return the tokens of batch `step` on the device."""
        raise NotImplementedError

    def backward(self, rows: Tensor) -> Any:
        """Fill the gradients of one step."""
        raise NotImplementedError

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass."""
        raise NotImplementedError


class Probe:
    """Measures one run. `found` gathers a step's numbers, which stay on the device until the step's record is made."""

    def __init__(self, asked: DiagnosticsSettings, cfg: RunConfig, data: TokenData) -> None:
        self.asked, self.cfg, self.data = asked, cfg, data
        self.found: Found = {}
        self._places: dict[str, list[nn.Parameter]] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._texts: Batch | None = None

    def due(self, step: int) -> bool:
        return self.asked.due(step, self.cfg.trainer.steps)

    def at_start(self, trainer: Measured) -> dict[str, Any]:
        """The numbers before training: of the first batch's gradients, and of the extra pass."""
        if "gradients" in self.asked.measures:
            with eager(trainer.compiled):
                trainer.backward(trainer.rows(0))
            self.found |= gradient_norms(self.places(trainer.model))
            trainer.optimizer.zero_grad(set_to_none=True)
        return self.record(trainer)

    def before_update(self, model: TransformerLM) -> None:
        """Between a step's backward pass and its update; nothing here waits for the device."""
        places = self.places(model)
        if "gradients" in self.asked.measures:
            self.found |= gradient_norms(places)
        if "updates" in self.asked.measures:
            self._before = copies(places)

    def record(self, trainer: Measured) -> dict[str, Any]:
        """After a step: its numbers, ready for history.jsonl."""
        model = trainer.model
        if self._before:
            self.found |= update_ratios(self.places(model), self._before)
            self._before = {}
        if PASS & set(self.asked.measures):
            training = model.training
            model.eval()
            try:
                with trainer.precision(), eager(trainer.compiled):
                    self.found |= look_inside(model, self.texts(trainer), self.asked.measures)
            finally:
                model.train(training)
        if "norms" in self.asked.measures:
            self.found |= gains(model)
        found, self.found = self.found, {}
        numbers = torch.stack([value.float() for value in found.values()]).tolist() if found else []
        named = {f"{PREFIX}{name}": number for name, number in zip(found, numbers, strict=True)}
        return {**dict(sorted(named.items())), SETTINGS_KEY: json.dumps(self.asked.model_dump())}

    def places(self, model: TransformerLM) -> dict[str, list[nn.Parameter]]:
        self._places = self._places or groups(model)
        return self._places

    def texts(self, trainer: Measured) -> Batch:
        """Texts spread evenly over the validation span, read as validation reads them; whole ones, where there are any."""
        if self._texts is None:
            inputs, targets = self.data.val_windows(self.cfg.model.context_length)
            whole = np.flatnonzero((targets != IGNORE).all(-1))
            whole = whole if len(whole) else np.arange(len(inputs))
            evenly = np.linspace(0, len(whole) - 1, min(self.asked.sequences or 1, len(whole)))
            picked = whole[evenly.round().astype(int)]
            some = (torch.from_numpy(np.ascontiguousarray(rows[picked])) for rows in (inputs, targets))
            self._texts = trainer.objective.validation(*some).to(trainer.device)
        return self._texts


@torch.no_grad()
def look_inside(model: TransformerLM, texts: Batch, measures: Collection[str]) -> Found:
    """One forward pass over `texts` with everything of `measures` that it shows."""
    found: Found = {}
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
