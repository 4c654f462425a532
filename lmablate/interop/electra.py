"""Convert ELECTRA: a run of ``objective=rtd`` is a generator and a discriminator of transformers.

In transformers each has its own embeddings. Here the generator reads those of the model, as in the paper's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmablate.core.errors import ConfigError
from lmablate.interop.configure import configure
from lmablate.interop.convert import NO_TOKENS, fill, read_weights
from lmablate.interop.families import FAMILIES, differences
from lmablate.interop.families.encoders import electra_stack
from lmablate.interop.model_spec import spec_of
from lmablate.interop.saved import DISCRIMINATOR, library, load
from lmablate.interop.tensors import Rule, expand, linear
from lmablate.model import build_model
from lmablate.model.multi_stack import generator_of
from lmablate.model.transformer import TransformerLM
from lmablate.schema.run_config import RunConfig

FAMILY = next(family for family in FAMILIES if family.name == "ElectraForMaskedLM")
# The generator shares these with the model.
SHARED = ("embedding.", "posemb.", "segments.", "embedding_norm.")
DETECTOR = {"objective": "rtd", "model.tie_embeddings": False, "model.head_bias": False, "model.head_transform": False}


def from_electra(generator: Any, discriminator: Any) -> TransformerLM:
    """Return the ``objective=rtd`` model of an ElectraForMaskedLM and an ElectraForPreTraining.

    Each is a model, or a folder or name that ``from_pretrained`` takes. Raises ConfigError for sizes that are not one share of the
    other's, and for embeddings that differ."""
    generator, discriminator = (
        load(each) if isinstance(each, str | Path) else each for each in (generator, discriminator)
    )
    spec = FAMILY.read(discriminator.config) | DETECTOR
    cfg = configure(spec)
    share = generator.config.hidden_size / discriminator.config.hidden_size
    objective = cfg.objective.model_copy(update={"generator_share": share})
    cfg = cfg.model_copy(update={"objective": objective})
    own = generator_of(cfg)
    assert own is not None
    if wrong := differences(spec_of(own), FAMILY.read(generator.config)):
        raise ConfigError(
            f"from_electra: a generator of {share:g} of the discriminator's width has other settings here: {', '.join(wrong)}"
        )
    model = build_model(cfg)
    values = read_weights(_detector_rules(cfg), discriminator, spec)
    theirs = read_weights(FAMILY.rules(spec_of(own)), generator, spec_of(own))
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
    """Return the ElectraForMaskedLM and ElectraForPreTraining of an ``objective=rtd`` model, in fp32 and evaluation mode.

    Raises ConfigError if they do not compute the same."""
    cfg = model.config
    own = None if cfg is None else generator_of(cfg)
    if cfg is None or own is None:
        raise ConfigError("to_electra takes a model of objective=rtd that lmablate.model.build_model made")
    weights = {name: value.detach() for name, value in model.named_parameters()}
    of_generator = {inner: value for name, value in weights.items() if (inner := _outside(name)) is not None}
    parts = []
    for kind, each, rules, values in (
        ("ElectraForMaskedLM", own, FAMILY.rules(spec_of(own)), of_generator),
        (DISCRIMINATOR, cfg, _detector_rules(cfg), weights),
    ):
        spec = spec_of(each)
        config = library().ElectraConfig(**(NO_TOKENS | FAMILY.write(spec)))
        for token in NO_TOKENS:
            setattr(config, token, None)
        wanted = spec if each is own else spec | {key: FAMILY.read(config)[key] for key in DETECTOR}
        if wrong := differences(wanted, FAMILY.read(config)):
            raise ConfigError(f"to_electra: ELECTRA of transformers would, but for {', '.join(wrong)}")
        theirs = getattr(library(), kind)(config).float()
        every = expand(rules, spec["model.n_layers"])
        with torch.no_grad():
            for name, target in theirs.named_parameters():
                rule = every[name]
                target.copy_(rule.form.pack([values[mine] for mine in rule.ours], spec))
        theirs.tie_weights()
        parts.append(theirs.eval())
    return parts[0], parts[1]


def _detector_rules(cfg: RunConfig) -> list[Rule]:
    at = "discriminator_predictions"
    head = linear("head.dense", f"{at}.dense") + linear("head.replaced", f"{at}.dense_prediction")
    return electra_stack(spec_of(cfg)) + head


def _inside(name: str) -> str:
    """Return the name in the whole model of a weight of its generator."""
    return name.replace("blocks.", "generator.reader.blocks.", 1) if name.startswith("blocks.") else f"generator.{name}"


def _outside(name: str) -> str | None:
    """Return the name in the generator of a weight of the whole model, or None if the generator does not read it."""
    if name.startswith(SHARED):
        return name
    return name.removeprefix("generator.").removeprefix("reader.") if name.startswith("generator.") else None
