"""The definition of a family: one class of transformers, as lenses on its configuration and rules for its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmablate.core.errors import ConfigError
from lmablate.interop.config_mapping import Keys, Lens
from lmablate.interop.model_spec import BIASES, Spec, complete
from lmablate.interop.tensors import Rule

# Attributes of a configuration that do not affect the logits of one text in evaluation mode.
IDLE = frozenset(
    """
    _name_or_path architectures attn_pdrop attention_dropout bos_token_id chunk_size_feed_forward classifier_dropout
    decoder_start_token_id dtype embd_pdrop embed_dropout embedding_dropout emb_pdrop eos_token_id finetuning_task
    hidden_dropout id2label init_device init_std initializer_range keys_to_ignore_at_inference label2id
    layerdrop max_length model_type name_or_path num_labels output_attentions output_hidden_states output_router_logits
    pad_token_id prefix pretraining_tp problem_type reorder_and_upcast_attn resid_dropout resid_pdrop residual_dropout
    return_dict sep_token_id slow_but_exact summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj task_specific_params tokenizer_class torch_dtype transformers_version use_cache
    attention_softmax_in_fp32 scale_attention_softmax_in_fp32 norm_type dropout router_aux_loss_coef router_jitter_noise
    """.split()
)

# Attributes read by modelling or loading code even if a class does not declare them.
BORROWED = frozenset({"head_dim", "quantization_config", "partial_rotary_factor", "is_causal", "attention_chunk_size"})

USUAL_SIZES = {
    "model.d_model": "hidden_size",
    "model.n_layers": "num_hidden_layers",
    "model.n_heads": "num_attention_heads",
    "model.d_ff": "intermediate_size",
    "model.context_length": "max_position_embeddings",
}


@dataclass(frozen=True)
class Family:
    """A class of transformers.

    `name` is the class. `lenses` come after those of every class: `sizes`, the vocabulary and
    the tied head. `rules` lists the weights of a model of a spec. `unties`: a model may have a head of its own, though no setting
    of the configuration says so."""

    name: str
    lenses: Sequence[Lens]
    rules: Callable[[Spec], Sequence[Rule]]
    sizes: Mapping[str, str]
    unties: bool = False

    @property
    def config(self) -> str:
        """Return the name of the configuration's class: ``GPT2Config`` of ``GPT2LMHeadModel``."""
        return re.sub(r"(For[A-Z]|LMHead).*", "Config", self.name)

    def all_lenses(self) -> list[Lens]:
        """Return the lenses of every class, followed by this class's own."""
        both = {"model.vocab_size": "vocab_size", "model.tie_embeddings": "tie_word_embeddings"}
        return [Keys({**self.sizes, **both}), *self.lenses]

    def read(self, config: Any) -> dict[str, Any]:
        """Return the spec of a configuration. Raises ConfigError for a setting that we cannot express."""
        spec: dict[str, Any] = {}
        for lens in self.all_lenses():
            spec |= lens.read(config)
        self._refuse_strangers(config)
        return complete(spec)

    def write(self, spec: Spec) -> dict[str, Any]:
        """Return the keyword arguments of a configuration as close to `spec` as this class can be."""
        out: dict[str, Any] = {}
        for lens in self.all_lenses():
            out |= lens.write(spec)
        return out

    def _refuse_strangers(self, config: Any) -> None:
        """Raise ConfigError for an attribute outside the lenses that differs from its default, since it may change the computation.

        Attributes that the class does not declare have no effect, except those in BORROWED."""
        answered = {name for lens in self.all_lenses() for name in lens.theirs} | IDLE
        answered |= {
            config.attribute_map.get(name, name) for name in answered
        }  # a configuration may have two names for one
        default = type(config)(bos_token_id=0, eos_token_id=0).to_dict()
        for name, value in config.to_dict().items():
            own = name in default or name in BORROWED
            if own and name not in answered and value != default.get(name):
                raise ConfigError(
                    f"from_hf: {type(config).__name__}.{name}={value!r} is not known here: only its default, "
                    f"{default.get(name)!r}, can be expressed"
                )


def differences(wanted: Spec, offered: Spec) -> list[str]:
    """Return the keys that a class would compute differently, except for neutral or reordered weights."""
    keys = [key for key in sorted({*wanted, *offered}) if not _same(key, wanted, offered)]
    follows = "attention.scale" if "model.head_dim" in keys else None  # follows from the width of a head
    return [key for key in keys if key != follows]


def _same(key: str, wanted: Spec, offered: Spec) -> bool:
    ours, theirs = wanted.get(key), offered.get(key)
    if key in (*BIASES, "norm.bias") and not ours:
        return True  # a bias of zeros
    if key == "norm.gain" and theirs:
        return True  # a gain of ones
    if key == "ffn.biased" and theirs:
        return True  # a bias of zeros
    if key.endswith("unit_offset"):
        return True
    if key == "posemb.layout" and wanted["attention"] == "heads":
        return True
    if key == "model.context_length" and wanted["posemb"] != "learned":
        return True
    if key == "attention.window" and "l" not in wanted.get("attention.pattern", "l"):
        return ours == theirs or set(wanted["attention.pattern"]) == {"g"}
    return _equal(ours, theirs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def idle_weights(wanted: Spec, offered: Spec) -> int:
    """Return how many kinds of weights the class would hold without effect."""
    return sum(
        bool(offered.get(key)) and not wanted.get(key) for key in (*BIASES, "norm.bias", "norm.gain", "ffn.biased")
    )
