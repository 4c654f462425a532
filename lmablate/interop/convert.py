"""Convert models of transformers into ours, and back, with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.interop.configure import configure
from lmablate.interop.families import FAMILIES, Family, differences, idle_weights
from lmablate.interop.model_spec import Spec, spec_of
from lmablate.interop.saved import DISCRIMINATOR, few, library, load, quiet
from lmablate.interop.tensors import Rule, expand, neutral, translated
from lmablate.model import build_model
from lmablate.model.transformer import TransformerLM
from lmablate.schema.run_config import RunConfig

# Rows of experts must be a multiple of this: their grouped product needs rows of whole 16 bytes, also in bf16.
ROW = 8
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)  # before a tokenizer sets them


def from_hf(hf_model: Any) -> TransformerLM:
    """Return our model of a transformers language model, or of a folder or name that ``from_pretrained`` takes.

    Weights are converted to fp32, and the model's ``config`` describes it in our options. Dropout is a training setting and is
    dropped. Raises ConfigError for a class or setting that we cannot express, and for missing or extra weights."""
    if isinstance(hf_model, str | Path):
        hf_model = load(hf_model)
    name = type(hf_model).__name__
    family = next((family for family in FAMILIES if family.name == name), None)
    if name == DISCRIMINATOR:
        raise ConfigError(
            f"from_hf: {name} is half of a model here: lmablate.interop.electra.from_electra takes it with its generator"
        )
    if family is None:
        raise ConfigError(f"from_hf: {name} is not a class known here: there are {', '.join(f.name for f in FAMILIES)}")
    spec = family.read(hf_model.config)
    if (head := hf_model.get_output_embeddings()) is not None:  # a checkpoint with a head of its own unties it
        spec["model.tie_embeddings"] = head.weight is hf_model.get_input_embeddings().weight
    model = build_model(configure(spec))
    fill(model, read_weights(family.rules(spec), hf_model, spec), name)
    return model


def _tensors(theirs: Any, rules: Sequence[Rule], spec: Spec) -> dict[str, Tensor]:
    """Return the parameters of a transformers model, and those of its buffers that are weights here."""
    rules_by_name = expand(rules, spec["model.n_layers"])
    buffers = {key: value for key, value in theirs.named_buffers() if key in rules_by_name}
    return {key: value.detach() for key, value in theirs.named_parameters()} | buffers


def read_weights(rules: Sequence[Rule], theirs: Any, spec: Spec) -> dict[str, Tensor]:
    """Return the weights of a transformers model in fp32 under our names. Raises ConfigError for unknown weights."""
    every, tensors = expand(rules, spec["model.n_layers"]), _tensors(theirs, rules, spec)
    if extra := sorted(set(tensors) - set(every)):
        name = type(theirs).__name__
        raise ConfigError(f"from_hf: this {name} has weights that its configuration says nothing of: {few(extra)}")
    values: dict[str, Tensor] = {}
    for key, whole in tensors.items():
        rule = every[key]
        values |= zip(rule.ours, rule.form.unpack(whole.float(), spec), strict=True)
    return values


def fill(model: TransformerLM, values: Mapping[str, Tensor], name: str) -> None:
    """Set every parameter of `model` from `values`. Raises ConfigError, naming the class `name`, if they do not match."""
    targets = dict(model.named_parameters())
    if missing := sorted(set(targets) - set(values)):
        raise ConfigError(f"from_hf: this {name} lacks the weights of {few(missing)}")
    if extra := sorted(set(values) - set(targets)):
        raise ConfigError(f"from_hf: this {name} has weights without a place here: {few(extra)}")
    for key, target in targets.items():
        if values[key].shape != target.shape:
            raise ConfigError(
                f"from_hf: {key} of this {name} is {tuple(values[key].shape)}, and its configuration makes it {tuple(target.shape)}"
            )
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(values[key])


def to_hf(model: TransformerLM, name: str | None = None) -> Any:
    """Return the transformers model that computes the same as `model`, with its weights, in fp32 and evaluation mode.

    `name` selects a class, such as ``OPTForCausalLM``. Without it the first class that can express the model is chosen, with
    preference for classes without idle weights (biases of 0, gains of 1). Rotary channels are reordered and gains stored as the
    class needs them. Raises ConfigError, naming the options, if no class computes the same.
    """
    cfg = getattr(model, "config", None)
    if not isinstance(model, TransformerLM) or cfg is None:
        raise ConfigError(f"to_hf takes a model that lmablate.model.build_model made, got {type(model).__name__}")
    if model.embedding.weight.ndim != 2:
        raise ConfigError(
            "to_hf takes the model of one run, and this one holds the stacked weights of a gang: take its members"
        )
    if cfg.objective.kind == "rtd":
        raise ConfigError(
            "to_hf: objective=rtd trains two models, and transformers has a class for each: use "
            "lmablate.interop.electra.to_electra, or lmablate export"
        )
    spec = spec_of(cfg)
    candidates = [family for family in FAMILIES if name in (None, family.name)]
    if not candidates:
        raise ConfigError(f"to_hf: {name} is not a class known here: there are {', '.join(f.name for f in FAMILIES)}")
    family, config, offered = _best(spec, cfg, candidates)
    if spec["ffn"] == "tokens" and any(spec[width] % ROW for width in ("ffn.width", "model.d_model")):
        config._experts_implementation = "eager"
    theirs = getattr(library(), family.name)(config).float()
    untied = family.unties and not spec["model.tie_embeddings"]
    if untied:
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    rules = family.rules(offered)
    targets = _tensors(theirs, rules, spec)
    values = _theirs(rules, model, spec, offered, targets)
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(values[key])
    if not untied:
        theirs.tie_weights()
    return theirs.eval()


def _best(spec: Spec, cfg: RunConfig, candidates: Sequence[Family]) -> tuple[Family, Any, Spec]:
    """Return the class that expresses `spec` with the fewest idle and rewritten weights, its configuration and spec."""
    matches: list[tuple[Any, Family, Any, Spec]] = []
    failed: dict[str, Any] = {}
    for order, family in enumerate(candidates):
        try:
            with quiet():
                config = _configuration(family, spec)
                offered = family.read(config)
            if family.unties:
                offered["model.tie_embeddings"] = spec["model.tie_embeddings"]
        except ConfigError as error:
            failed[family.name] = str(error)
            continue
        if wrong := differences(spec, offered):
            failed[family.name] = wrong
        else:
            rewritten = [offered.get(key) != spec.get(key) for key in ("norm.unit_offset", "posemb.layout")]
            matches.append(((idle_weights(spec, offered), rewritten, order), family, config, offered))
    if not matches:
        raise ConfigError(_nothing(spec, cfg, failed))
    return min(matches, key=lambda item: item[0])[1:]


def _configuration(family: Family, spec: Spec) -> Any:
    """Return a configuration of the class as close to `spec` as possible.

    Where a null here must be a number there, the class keeps its default, which is read back as a difference."""
    written = family.write(spec)
    try:
        config = _made(family, written)
    except ConfigError:
        config = _made(family, {key: value for key, value in written.items() if value is not None})
    for token in NO_TOKENS.keys() - written.keys():
        setattr(config, token, None)
    return config


def _made(family: Family, written: Mapping[str, Any]) -> Any:
    try:
        return getattr(library(), family.config)(**(NO_TOKENS | dict(written)))
    except (ValueError, TypeError, ZeroDivisionError, KeyError) as error:
        raise ConfigError(f"{family.config} refuses its sizes: {_last_line(error)}") from error
    except Exception as error:  # huggingface_hub's validation errors derive from Exception alone
        if "Validation" not in type(error).__name__:
            raise
        raise ConfigError(f"{family.config} refuses its sizes: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__


def _nothing(spec: Spec, cfg: RunConfig, failed: Mapping[str, Any]) -> str:
    """Return the error message: the options that the nearest classes lack, and those that no class has."""
    near = [(wrong, name) for name, wrong in failed.items() if isinstance(wrong, list)]  # in the order of preference
    if spec["objective"] == "causal":  # an encoder does not help a decoder
        near = [one for one in near if "objective" not in one[0]]
    least = min((len(_as_overrides(wrong, spec, cfg)) for wrong, _ in near), default=0)
    nearest = [(name, wrong) for wrong, name in near if len(_as_overrides(wrong, spec, cfg)) == least]
    never = list(filter(None, _as_overrides(_common(near), spec, cfg)))
    lines = ["to_hf: no transformers class known here computes what this model computes"]
    if never:
        lines.append(f"none has {', '.join(never)}")
    lines += [f"{name} would, but for {', '.join(_as_overrides(wrong, spec, cfg))}" for name, wrong in nearest[:3]]
    refused: dict[str, list[str]] = {}
    for name, text in failed.items():
        if isinstance(text, str):
            refused.setdefault(text.partition(": ")[2] or text, []).append(name)
    lines += [f"not tried for their sizes: {', '.join(names)} ({text})" for text, names in refused.items()]
    return "; ".join(lines)


def _common(near: Sequence[tuple[list[str], str]]) -> list[str]:
    return [key for key in (near[0][0] if near else []) if all(key in wrong for wrong, _ in near)]


def _as_overrides(keys: Sequence[str], spec: Spec, cfg: RunConfig) -> list[str]:
    """Return entries of the spec as overrides, each once."""
    overrides = []
    for key in keys:
        group = key.partition(".")[0]
        if key in spec and (group in ("model", "stability") or (_is_number(key) and group not in keys)):
            overrides.append(f"{key}={spec[key]}")
        else:
            overrides.append(f"{group}={cfg.choices.get(group)}")
    return list(dict.fromkeys(overrides))


def _is_number(key: str) -> bool:
    return key.partition(".")[2] not in ("", "pattern", "window", "layout", "width", "rule")


def _theirs(
    rules: Sequence[Rule], model: TransformerLM, here: Spec, there: Spec, targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return our weights under their names. Weights that we do not have get neutral values."""
    ours = {key: translated(key, value.detach(), here, there) for key, value in model.named_parameters()}
    every = expand(rules, here["model.n_layers"])
    values: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, target in targets.items():
        rule = every[key]
        if rule.ours[0] in ours:
            values[key] = rule.form.pack([ours[name].float() for name in rule.ours], here)
            used |= set(rule.ours)
        else:
            values[key] = neutral(rule.ours[0], target, there)
    if left := sorted(set(ours) - used):
        raise ConfigError(f"to_hf: no class of transformers has a place for {few(left)}")
    return values
