"""The transformers models that a run is exported as, and the logits that each must reproduce."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmablate.data import TokenData
from lmablate.interop.convert import to_hf
from lmablate.interop.electra import to_electra
from lmablate.interop.saved import library
from lmablate.model.transformer import TransformerLM
from lmablate.objective import MaskedLM, Objective, ReplacedTokens, SpanCorruption, objective_of
from lmablate.schema.run_config import RunConfig

MASK = "<|mask|>"
SENTINEL = "<extra_id_{}>"  # as T5 names them


class AutoClass(NamedTuple):
    """The auto class that loads a class with this `ending`, and its task on the Hub, if it has one."""

    ending: str
    auto: str
    task: str | None


KINDS = (
    AutoClass("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    AutoClass("ForPreTraining", "AutoModelForPreTraining", None),
    AutoClass("ForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
    AutoClass("", "AutoModelForCausalLM", "text-generation"),
)


class ExportModel(NamedTuple):
    """A transformers model of an export.

    `subfolder`: below the exported folder ("" for that itself). `inputs`: a window. `expected`: the logits of the run on it.
    """

    theirs: Any
    subfolder: str
    inputs: Mapping[str, Tensor]
    expected: Tensor

    @property
    def loads(self) -> AutoClass:
        """Return the auto class that loads this model, or its own class if no auto class knows it (Mistral 4)."""
        name = type(self.theirs).__name__
        kind = next(kind for kind in KINDS if name.endswith(kind.ending))
        known = type(self.theirs.config) in getattr(library(), kind.auto)._model_mapping
        return kind if known else kind._replace(auto=name)


@torch.no_grad()
def models_of(model: TransformerLM, cfg: RunConfig, data: TokenData) -> list[ExportModel]:
    """Return the transformers models of a run: one, or generator and discriminator for ``objective=rtd``.

    Their special tokens are set. The input is the first validation window as the run's objective reads it. Raises ConfigError for
    a run that no class expresses."""
    objective = objective_of(cfg)
    batch = objective.validation(*(torch.from_numpy(x[:1]) for x in data.val_windows(cfg.model.context_length)))
    if isinstance(objective, ReplacedTokens):
        generator, discriminator = to_electra(model)
        everywhere = torch.arange(batch.inputs.shape[-1])[None]
        text = objective.filled(model, batch.inputs, batch.targets, batch.noise).text
        models = [
            ExportModel(
                generator, "generator", {"input_ids": batch.inputs}, model.generator_logits(batch.inputs, everywhere)
            ),
            ExportModel(discriminator, "discriminator", {"input_ids": text}, model(text).squeeze(-1)),
        ]
    else:
        inputs = {"input_ids": batch.inputs}
        if (split := model.source_length) is not None:
            inputs = {"input_ids": batch.inputs[:, :split], "decoder_input_ids": batch.inputs[:, split:]}
        models = [ExportModel(to_hf(model), "", inputs, model(batch.inputs))]
    for exported in models:
        _set_tokens(exported.theirs, objective, data.eot_id, cfg.model.context_length)
    return models


def _set_tokens(theirs: Any, objective: Objective, end: int, length: int) -> None:
    """Set the end token, and for spans the sentinel that starts the decoder and the one that ends the text."""
    for settings in (theirs.config, getattr(theirs, "generation_config", None)):
        if settings is None:
            continue
        settings.bos_token_id = settings.eos_token_id = end
        if isinstance(objective, SpanCorruption):
            settings.decoder_start_token_id = objective.first_id
            settings.eos_token_id = objective.first_id - objective.layout(length).spans


class SpecialTokens(NamedTuple):
    """Extra tokens of an objective: `new` ids above the tokenizer's with their names, and the id of the mask or None."""

    new: Mapping[int, str]
    mask: int | None


def special_tokens(cfg: RunConfig) -> SpecialTokens:
    """Return the tokens that the objective of a run reads besides its tokenizer's."""
    objective = objective_of(cfg)
    own = objective.reserved(cfg.model.context_length) > 0
    if isinstance(objective, SpanCorruption):
        spans = objective.layout(cfg.model.context_length).spans
        named = {objective.first_id - i: SENTINEL.format(i) for i in range(spans, -1, -1)}
        return SpecialTokens(named if own else {}, None)
    if isinstance(objective, MaskedLM):
        return SpecialTokens({objective.mask_id: MASK} if own else {}, objective.mask_id)
    return SpecialTokens({}, None)
