"""ELECTRA's two models: a run of ``objective=rtd`` as a generator and a discriminator of transformers, and back.

There each has embeddings of its own; here the generator reads those of the model, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.interop import model_spec as known
from lmablate.interop.configure import configure
from lmablate.interop.convert import NO_TOKENS, fill
from lmablate.interop.families import FAMILIES, differences
from lmablate.interop.families.encoders import electra_stack
from lmablate.interop.model_spec import Facts
from lmablate.interop.saved import DISCRIMINATOR, library, load
from lmablate.interop.tensors import Rule, expand, linear
from lmablate.model import build_model
from lmablate.model.multi_stack import generator_of
from lmablate.model.transformer import TransformerLM

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

FAMILY = next(family for family in FAMILIES if family.name == "ElectraForMaskedLM")
# What the generator has of these is the model's own.
SHARED = ("embedding.", "posemb.", "segments.", "embedding_norm.")
DETECTOR = {"objective": "rtd", "model.tie_embeddings": False, "model.head_bias": False, "model.head_transform": False}


def from_electra(generator: Any, discriminator: Any) -> TransformerLM:
    """The model of ``objective=rtd`` that an ElectraForMaskedLM and an ElectraForPreTraining make together, each as such or as a folder
    or name that ``from_pretrained`` takes. Raises ConfigError for sizes that are not one share of the other's, and for embeddings
    that are not the same."""
    generator, discriminator = (
        load(each) if isinstance(each, str | Path) else each for each in (generator, discriminator)
    )
    facts = FAMILY.read(discriminator.config) | DETECTOR
    cfg = configure(facts)
    share = generator.config.hidden_size / discriminator.config.hidden_size
    objective = cfg.objective.model_copy(update={"generator_share": share})
    cfg = cfg.model_copy(update={"objective": objective})
    own = generator_of(cfg)
    assert own is not None
    if wrong := differences(known.of(own), FAMILY.read(generator.config)):
        raise ConfigError(
            f"from_electra: a generator of {share:g} of the discriminator's width has other settings here: {', '.join(wrong)}"
        )
    model = build_model(cfg)
    values = _values(_detector_rules(cfg), discriminator, facts)
    theirs = _values(_generator_rules(own), generator, known.of(own))
    for name, value in theirs.items():
        if name.startswith(SHARED):
            if not torch.equal(value, values[name]):
                raise ConfigError(
                    f"from_electra: {name} of the generator is not the discriminator's, and they share it here"
                )
        else:
            values[_inside(name)] = value
    fill(model, values, "pair of ELECTRA")
    return model


def to_electra(model: TransformerLM) -> tuple[Any, Any]:
    """The ElectraForMaskedLM and the ElectraForPreTraining of a model of ``objective=rtd``, in fp32 and evaluation mode. Raises
    ConfigError where they do not compute the same."""
    cfg = model.config
    own = None if cfg is None else generator_of(cfg)
    if cfg is None or own is None:
        raise ConfigError("to_electra takes a model of objective=rtd that lmablate.model.build_model made")
    weights = {name: value.detach() for name, value in model.named_parameters()}
    of_generator = {name: value for name, value in weights.items() if name.startswith(SHARED)}
    of_generator |= {
        name: value for name, value in ((_outside(name), value) for name, value in weights.items()) if name is not None
    }
    parts = []
    for kind, each, rules, values in (
        ("ElectraForMaskedLM", own, _generator_rules(own), of_generator),
        (DISCRIMINATOR, cfg, _detector_rules(cfg), weights),
    ):
        facts = known.of(each)
        config = library().ElectraConfig(**(NO_TOKENS | FAMILY.write(facts)))
        for token in NO_TOKENS:
            setattr(config, token, None)
        asked = facts if each is own else facts | {key: FAMILY.read(config)[key] for key in DETECTOR}
        if wrong := differences(asked, FAMILY.read(config)):
            raise ConfigError(f"to_electra: ELECTRA of transformers would, but for {', '.join(wrong)}")
        theirs = getattr(library(), kind)(config).float()
        every = expand(rules, facts["model.n_layers"])
        with torch.no_grad():
            for name, target in theirs.named_parameters():
                rule = every[name]
                target.copy_(rule.form.pack([values[mine] for mine in rule.ours], facts))
        theirs.tie_weights()
        parts.append(theirs.eval())
    return parts[0], parts[1]


def _detector_rules(cfg: RunConfig) -> list[Rule]:

    at = "discriminator_predictions"
    head = linear("head.dense", f"{at}.dense") + linear("head.replaced", f"{at}.dense_prediction")
    return electra_stack(known.of(cfg)) + head


def _generator_rules(own: RunConfig) -> Sequence[Rule]:
    return FAMILY.rules(known.of(own))


def _values(rules: Sequence[Rule], theirs: Any, facts: Facts) -> dict[str, Tensor]:
    every = expand(rules, facts["model.n_layers"])
    values: dict[str, Tensor] = {}
    for name, whole in theirs.named_parameters():
        rule = every[name]
        values |= zip(rule.ours, rule.form.unpack(whole.detach().float(), facts), strict=True)
    return values


def _inside(name: str) -> str:
    """The name in the model of a weight of its generator alone."""
    return name.replace("blocks.", "generator.reader.blocks.", 1) if name.startswith("blocks.") else f"generator.{name}"


def _outside(name: str) -> str | None:
    if not name.startswith("generator."):
        return None
    return name.removeprefix("generator.").removeprefix("reader.")
