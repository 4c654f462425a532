"""The models of transformers that a run is written as, and what each is compared with the run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lmablate.interop.convert import to_hf
from lmablate.interop.electra import to_electra
from lmablate.objective import MaskedLM, Objective, ReplacedTokens, SpanCorruption, objective_of

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

MASK = "<|mask|>"
SENTINEL = "<extra_id_{}>"  # as T5 names them


class Loads(NamedTuple):
    """What loads a class of this `ending`, and what it does in the words of the Hub, where it has one."""

    ending: str
    auto: str
    task: str | None


KINDS = (
    Loads("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    Loads("ForPreTraining", "AutoModelForPreTraining", None),
    Loads("ForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
    Loads("", "AutoModelForCausalLM", "text-generation"),
)


class Piece(NamedTuple):
    """A model of theirs; its folder below the exported one, "" for that itself; and on what input it is compared with which
    logits of the run."""

    theirs: Any
    place: str
    given: Mapping[str, Tensor]
    expected: Tensor

    @property
    def loads(self) -> Loads:
        name = type(self.theirs).__name__
        return next(kind for kind in KINDS if name.endswith(kind.ending))


@torch.no_grad()
def pieces_of(model: TransformerLM, cfg: RunConfig, data: TokenData) -> list[Piece]:
    """One model; of ``objective=rtd`` two, the generator and the discriminator. Their tokens are set, and the input is the first
    validation window as the objective of the run reads it. Raises ConfigError for a run that no class expresses."""

    objective = objective_of(cfg)
    batch = objective.validation(*(torch.from_numpy(x[:1]) for x in data.val_windows(cfg.model.context_length)))
    if isinstance(objective, ReplacedTokens):
        generator, discriminator = to_electra(model)
        everywhere = torch.arange(batch.inputs.shape[-1])[None]
        text = objective.filled(model, batch.inputs, batch.targets, batch.noise).text
        found = [
            Piece(
                generator, "generator", {"input_ids": batch.inputs}, model.generator_logits(batch.inputs, everywhere)
            ),
            Piece(discriminator, "discriminator", {"input_ids": text}, model(text).squeeze(-1)),
        ]
    else:
        given = {"input_ids": batch.inputs}
        if (split := model.source_length) is not None:
            given = {"input_ids": batch.inputs[:, :split], "decoder_input_ids": batch.inputs[:, split:]}
        found = [Piece(to_hf(model), "", given, model(batch.inputs))]
    for piece in found:
        _set_tokens(piece.theirs, objective, data.eot_id, cfg.model.context_length)
    return found


def _set_tokens(theirs: Any, objective: Objective, end: int, length: int) -> None:
    """The end token; and of spans the sentinel that opens them, which a decoder starts with, and the one that ends them."""
    for settings in (theirs.config, getattr(theirs, "generation_config", None)):
        if settings is None:
            continue
        settings.bos_token_id = settings.eos_token_id = end
        if isinstance(objective, SpanCorruption):
            settings.decoder_start_token_id = objective.first_id
            settings.eos_token_id = objective.first_id - objective.layout(length).spans


class SpecialTokens(NamedTuple):
    """Of an objective: `new` ids above the tokenizer's, upwards, and what they are called in an exported tokenizer; and which id is the
    mask, where there is one."""

    new: Mapping[int, str]
    mask: int | None


def special_tokens(cfg: RunConfig) -> SpecialTokens:
    """What the objective of a run reads beside its tokenizer's tokens."""
    objective = objective_of(cfg)
    own = objective.reserved(cfg.model.context_length) > 0
    if isinstance(objective, SpanCorruption):
        spans = objective.layout(cfg.model.context_length).spans
        named = {objective.first_id - i: SENTINEL.format(i) for i in range(spans, -1, -1)}
        return SpecialTokens(named if own else {}, None)
    if isinstance(objective, MaskedLM):
        return SpecialTokens({objective.mask_id: MASK} if own else {}, objective.mask_id)
    return SpecialTokens({}, None)
