"""Resolve the heads and widths of a model from those given."""

from typing import Any

from lmablate.budget import ff_width
from lmablate.core.errors import ConfigError
from lmablate.schema.run_config import ModelRequest, ModelSettings, RunRequest
from lmablate.schema.tasks import Skill


def _heads(m: ModelRequest) -> tuple[int, int, int]:
    """Return (n_heads, n_kv_heads, head_dim). Raises ConfigError if they do not fit together."""
    n_heads, head_dim = m.n_heads, m.head_dim
    if n_heads is None and head_dim is None:
        raise ConfigError("give model.n_heads or model.head_dim (or both)")
    if n_heads is None:
        assert head_dim is not None
        if m.d_model % head_dim:
            raise ConfigError(
                f"model.d_model={m.d_model} is not a multiple of model.head_dim={head_dim}: give model.n_heads as well"
            )
        n_heads = m.d_model // head_dim
    if head_dim is None:
        if m.d_model % n_heads:
            near = max(1, m.d_model // n_heads) * n_heads
            raise ConfigError(
                f"model.d_model={m.d_model} is not a multiple of model.n_heads={n_heads}: "
                f"use model.d_model={near} or {near + n_heads}, or give model.head_dim, which need not be d_model / n_heads"
            )
        head_dim = m.d_model // n_heads
    n_kv_heads = m.n_kv_heads or n_heads
    if n_kv_heads > n_heads or n_heads % n_kv_heads:
        divisors = [k for k in range(1, n_heads + 1) if n_heads % k == 0]
        raise ConfigError(
            f"model.n_kv_heads={n_kv_heads} does not divide model.n_heads={n_heads}: allowed are {', '.join(map(str, divisors))}"
        )
    return n_heads, n_kv_heads, head_dim


def sizes(request: RunRequest, m: ModelRequest) -> ModelSettings:
    """Return the final sizes of `m`, a version of ``request.model``. Raises ConfigError for heads that do not fit."""
    n_heads, n_kv_heads, head_dim = _heads(m)
    d_ff = m.d_ff or ff_width(
        m.d_model,
        ff_ratio=m.ff_ratio or 0.0,
        gated=request.activation.gated,
        bias=m.biases.mlp,
        gated_scale=m.gated_scale,
    )
    same = {name: getattr(m, name) for name in ModelSettings.model_fields if name in ModelRequest.model_fields}
    same |= _canonical(m)
    heads = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "d_ff": d_ff}
    return ModelSettings(**{**same, **heads, "vocab_size": _vocab_size(request)})


def _vocab_size(request: RunRequest) -> int:
    """Return the vocabulary size: of a preset at its own size, of a task, or of the tokenizer plus the objective's ids.

    1 stands for a tokenizer whose size is known only once it is read."""
    if request.published_vocab_size:
        return request.published_vocab_size
    own = request.data.vocabulary if isinstance(request.data, Skill) else None
    return (own or getattr(request.tokenizer, "vocab_size", None) or 1) + _reserved(request)


def _reserved(request: RunRequest) -> int:
    """Return how many ids the objective adds to those of the tokenizer."""
    from lmablate.objective import reserved_ids

    own = request.objective
    return reserved_ids(own.kind, own.model_dump(), request.model.context_length)


def _canonical(m: ModelRequest) -> dict[str, Any]:
    """Return the switches of `m` in one canonical form, so that a run has one identity.

    False is null where null is off, a scale of 1 is null, and `bias` is what most layers have."""
    biases = dict(zip(("qkv_bias", "out_bias", "mlp_bias"), m.biases, strict=False))
    most = sum(biases.values()) >= 2
    overrides = {key: None if own is most else own for key, own in biases.items()}
    scales = {key: None if (value := getattr(m, key)) == 1 else value for key in ("embedding_scale", "logit_scale")}
    return {**overrides, **scales, "bias": most, "head_bias": m.head_bias or None}
