"""Which tokens a position reads, under every objective and in generation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lmablate.check.finding import Finding, check, fails, holds, not_asked
from lmablate.check.outputs import apart, passed
from lmablate.check.small import VOCAB, request, scaled_model, tokens_for
from lmablate.check.subject import Subject
from lmablate.core.axes import options
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.model.attention import EVERYTHING, visible, with_prefix
from lmablate.model.primitives import set_compute_dtype
from lmablate.model.transformer import TransformerLM
from lmablate.objective import Batch, objective_of
from lmablate.schema.run_config import RunConfig
from lmablate.schema.training_config import ObjectiveSettings

LONG = 33  # beyond the small window, context, and the tokens that scaled positions are good for
CUTS = {
    "whole": [LONG],
    "pieces": [5, 1, 9, 1, 1, 2, 14],  # below, at and beyond the window, after single tokens and pieces
    "tokens": [1] * LONG,
}


def under(cfg: RunConfig, objective: str) -> RunConfig:
    """The same model under another objective."""
    settings = ObjectiveSettings(**request(f"objective={objective}")["objective"])
    return cfg.model_copy(update={"objective": settings})


def leak(cfg: RunConfig) -> str | None:
    """What is wrong with the tokens that reach a position, by their gradients, under the objective of `cfg`."""
    model, rows, length = scaled_model(cfg, 5.0), [], cfg.model.context_length
    tokens = tokens_for(cfg, rows=1)
    batch = objective_of(cfg).validation(tokens[:, :-1], tokens[:, 1:])
    mask = None if batch.prefix is None else with_prefix(length, batch.prefix)[0, 0]
    allowed = visible(length, EVERYTHING, tokens.device, mask)
    hook = model.embedding.register_forward_hook(
        lambda module, ids, out: rows.append(out.requires_grad_().retain_grad() or out)
    )
    logits = model(batch.inputs, *[x for x in (batch.prefix,) if x is not None])
    hook.remove()
    assert torch.equal((allowed.float() @ allowed.float()) > 0, allowed), "layers see more than one does"
    whole_texts = any(getattr(module, "reads_whole_texts", False) for module in model.modules())
    for t in (length // 4, length // 2, length - 2):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), rows[0], retain_graph=True)
        if found := _wrong(gradient[0].abs().amax(-1), allowed[t], t):
            return found
        if not whole_texts and (found := _told(model, batch, logits[0, t], allowed[t], t)):
            return found
    return None


def _told(model: TransformerLM, batch: Batch, logits: Tensor, allowed: Tensor, t: int) -> str | None:
    """Whether other tokens where position t must not read change its logits, which gradients do not say of a choice."""
    other = torch.where(allowed, batch.inputs, (batch.inputs + 7) % (VOCAB // 2))
    found = passed(model, other) if batch.prefix is None else passed(model, other, batch.prefix)
    if torch.allclose(found[0, t], logits.detach(), rtol=1e-4, atol=1e-5):
        return None
    return (
        f"the future leaks: other tokens after position {t} change its logits by {apart(found[0, t], logits.detach())}"
    )


def _wrong(reached: Tensor, allowed: Tensor, t: int) -> str | None:
    if (hidden := reached.masked_fill(allowed, 0)).any():
        return f"the future leaks: position {t} is reached by token {int(hidden.argmax())}"
    if reached[t] == 0:
        return f"position {t} is not reached by its own token"
    if reached[:t].max() == 0:
        return f"position {t} is reached by no token before it"
    if allowed[t + 1 :].any() and reached[t + 1 :].max() == 0:
        return f"position {t} is reached by no token after it, and the objective lets it"
    return None


@check(
    "causal",
    asks="a position reads what its objective lets it read, under each objective, and nothing else",
    cost="the loss is that of a model that sees its answers; every comparison with it is void",
    mend="mask scores by positions.may_read, and mix tokens in no other way",
)
def causal(subject: Subject) -> Finding:
    if subject.cfg.model.n_encoder_layers:
        return not_asked("of a model with one stack only")
    refused = []
    for objective in options("objective"):
        try:
            found = leak(under(subject.cfg, objective))
        except ConfigError as error:
            refused.append(f"objective={objective} is refused: {_first(error)}")
            continue
        if found:
            return fails(f"objective={objective}: {found}")
    return holds("; ".join(refused))


@check(
    "objectives",
    asks="every objective that admits it gives a finite loss and gradients",
    cost="the option cannot be compared under that objective",
    mend="handle positions.may_read being a mask, True or None; take lengths from x",
)
def objectives(subject: Subject) -> Finding:
    refused = []
    for objective in options("objective"):
        try:
            cfg = under(subject.cfg, objective)
            found = _loss(cfg, subject.model(1.0, cfg))
        except ConfigError as error:
            refused.append(f"{objective} is refused: {_first(error)}")
            continue
        if not math.isfinite(found):
            return fails(f"objective={objective}: loss and gradients are not finite")
    return holds("; ".join(refused))


@check(
    "two stacks",
    asks="an encoder and a decoder of it train, or it is refused in words",
    cost="the option cannot stand in T5",
    mend="take the mask from positions.may_read and lengths from x",
)
def two_stacks(subject: Subject) -> Finding:
    try:
        cfg = subject.config({"model.n_encoder_layers": 2}, objective="span_corruption")
        found = _loss(cfg, subject.model(1.0, cfg))
    except ConfigError as error:
        return not_asked(f"refused: {_first(error)}")
    return holds() if math.isfinite(found) else fails("loss and gradients are not finite")


@check(
    "bf16",
    asks="trainer.precision=bf16 works, and is near fp32",
    cost="the option trains in fp32 only, or diverges where others do not",
    mend="return the dtype of the input; sums, norms and softmax in fp32",
)
def bf16(subject: Subject) -> Finding:
    losses = {}
    for dtype in (None, torch.bfloat16):
        model = subject.model()
        set_compute_dtype(model, dtype)
        losses[dtype] = _loss(subject.cfg, model)
    whole, half = losses[None], losses[torch.bfloat16]
    if not math.isfinite(half) or abs(half - whole) > 0.02 * abs(whole):
        return fails(f"loss {half:.4f} in bf16, {whole:.4f} in fp32")
    return holds()


def _loss(cfg: RunConfig, model: TransformerLM) -> float:
    """The loss of a batch, or infinity where a gradient is not finite."""
    rows = tokens_for(cfg)
    objective = objective_of(cfg)
    batch = objective.batch(rows[:, :-1], rows[:, 1:], data_seed=cfg.data_seed, step=0)
    loss = objective(model.train(), *batch)
    loss.objective.backward()
    finite = all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return float(loss.objective.detach()) if finite else math.inf


def _first(error: Exception) -> str:
    """The first clause of a message."""
    return str(error).split(": ")[0].split(", ")[0]


def some_tokens(rows: int = 2, length: int = LONG, seed: int = 1) -> Tensor:
    """Int64 ``[rows, length]``, drawn."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def furthest(model: TransformerLM, tokens: Tensor, cuts: Sequence[int], prefix: int | None = None) -> float:
    """The largest difference between the logits of each piece and those of the whole text so far, over the largest logit."""
    decoder = Decoder(model, len(tokens), tokens.shape[1] + 2)
    at, gap = 0, 0.0
    for n in cuts:
        found = decoder.feed(tokens[:, at : at + n], prefix if not at else None)
        given = None if prefix is None else torch.full((len(tokens),), prefix)
        with torch.no_grad():
            wanted = model(tokens[:, : at + n], given)[:, at:]
        assert found.shape == wanted.shape
        gap = max(gap, float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
        at += n
    return gap


def shortened(cuts: Sequence[int], length: int) -> list[int]:
    """The same pieces for a text of `length` tokens."""
    out: list[int] = []
    for n in cuts:
        out.append(min(n, length - sum(out)))
    return [n for n in out if n > 0]


def decoded(cfg: RunConfig, prefix: int | None = None, kinds: Sequence[str] = tuple(CUTS)) -> dict[str, float]:
    """The largest differences of reading piece by piece and at once, by how a text is cut. Raises ConfigError for a model that
    writes no text."""
    model = scaled_model(cfg, 5.0).eval()
    for name, parameter in model.named_parameters():  # biases and gains that do something
        if parameter.ndim == 1:
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    length = cfg.model.context_length if model.posemb.bounded else LONG
    return {kind: furthest(model, some_tokens(length=length), shortened(CUTS[kind], length), prefix) for kind in kinds}


@check(
    "decoding",
    asks="a text read piece by piece, with a cache, gets the logits of the whole",
    cost="sample writes the text of another model",
    mend="attention: cached() and positions.kv_cache; posemb: the hooks that end in _chunk and _at (docs/extend.md)",
)
def decoding(subject: Subject) -> Finding:
    try:
        cfg = subject.config({"model.bias": True})
    except ConfigError:
        cfg = subject.cfg
    kinds = ("pieces",) if subject.axis == "activation" else tuple(CUTS)  # which keeps nothing
    try:
        gaps = decoded(cfg, kinds=kinds)
    except ConfigError as error:
        return not_asked(str(error))
    worst = max(gaps, key=lambda kind: gaps[kind])
    if not gaps[worst] < 1e-4:
        return fails(f"read as {worst}, logits are {gaps[worst]:.2g} of the largest apart")
    return holds()
