"""Checks of which tokens a position reads, under every objective and in generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lmablate.check.finding import Finding, check, fails, holds, skips
from lmablate.check.outputs import gap_text, logits_of
from lmablate.check.small import VOCAB, first_loss, request, scaled_model, tokens_for
from lmablate.check.subject import Subject
from lmablate.core.axes import options
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder
from lmablate.model.attention import EVERYTHING, visible, with_prefix
from lmablate.model.precision import set_compute_dtype
from lmablate.model.transformer import TransformerLM
from lmablate.objective import Batch, objective_of
from lmablate.schema.run_config import RunConfig
from lmablate.schema.training_config import ObjectiveSettings

LONG = 33  # beyond the small window, the context, and the range of scaled positions
CUTS = {
    "whole": [LONG],
    "pieces": [5, 1, 9, 1, 1, 2, 14],  # below, at and beyond the window, after single tokens and chunks
    "tokens": [1] * LONG,
}


def under(cfg: RunConfig, objective: str) -> RunConfig:
    """Return the configuration under another objective."""
    settings = ObjectiveSettings(**request(f"objective={objective}")["objective"])
    return cfg.model_copy(update={"objective": settings})


def leak(cfg: RunConfig) -> str | None:
    """Return what is wrong with the tokens that reach a position, by their gradients, under the objective of `cfg`, or None."""
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
        if problem := _wrong(gradient[0].abs().amax(-1), allowed[t], t):
            return problem
        if not whole_texts and (problem := _leak_by_change(model, batch, logits[0, t], allowed[t], t)):
            return problem
    return None


def _leak_by_change(model: TransformerLM, batch: Batch, logits: Tensor, allowed: Tensor, t: int) -> str | None:
    """Return a message if tokens that position t must not read change its logits, else None.

    Gradients do not show this for a discrete choice."""
    other = torch.where(allowed, batch.inputs, (batch.inputs + 7) % (VOCAB // 2))
    logits_of_other = logits_of(model, other) if batch.prefix is None else logits_of(model, other, batch.prefix)
    if torch.allclose(logits_of_other[0, t], logits.detach(), rtol=1e-4, atol=1e-5):
        return None
    return f"the future leaks: other tokens after position {t} change its logits by {gap_text(logits_of_other[0, t], logits.detach())}"


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


def _under_each(cfg: RunConfig, problem: Callable[[RunConfig], str | None]) -> Finding:
    """Return the finding of `problem` under every objective that admits the configuration."""
    refused = []
    for objective in options("objective"):
        try:
            if found := problem(under(cfg, objective)):
                return fails(f"objective={objective}: {found}")
        except ConfigError as error:
            refused.append(f"objective={objective} is refused: {_first(error)}")
    return holds("; ".join(refused))


@check(
    "causal",
    asks="a position reads what its objective lets it read, under each objective, and nothing else",
    cost="the loss is that of a model that sees its answers; every comparison with it is void",
    mend="mask scores by positions.may_read, and mix tokens in no other way",
)
def causal(subject: Subject) -> Finding:
    if subject.cfg.model.n_encoder_layers:
        return skips("of a model with one stack only")
    return _under_each(subject.cfg, leak)


@check(
    "objectives",
    asks="every objective that admits it gives a finite loss and gradients",
    cost="the option cannot be compared under that objective",
    mend="handle positions.may_read being a mask, True or None; take lengths from x",
)
def objectives(subject: Subject) -> Finding:
    def problem(cfg: RunConfig) -> str | None:
        return None if math.isfinite(_loss(cfg, subject.model(1.0, cfg))) else "loss and gradients are not finite"

    return _under_each(subject.cfg, problem)


@check(
    "two stacks",
    asks="an encoder and a decoder of it train, or it is refused in words",
    cost="the option cannot stand in T5",
    mend="take the mask from positions.may_read and lengths from x",
)
def two_stacks(subject: Subject) -> Finding:
    try:
        cfg = subject.config({"model.n_encoder_layers": 2}, objective="span_corruption")
        loss = _loss(cfg, subject.model(1.0, cfg))
    except ConfigError as error:
        return skips(f"refused: {_first(error)}")
    return holds() if math.isfinite(loss) else fails("loss and gradients are not finite")


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
    """Return the loss of a batch, or infinity if a gradient is not finite."""
    loss = first_loss(cfg, model)
    loss.backward()
    finite = all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return float(loss.detach()) if finite else math.inf


def _first(error: Exception) -> str:
    """Return the first clause of a message."""
    return str(error).split(": ")[0].split(", ")[0]


def some_tokens(rows: int = 2, length: int = LONG, seed: int = 1) -> Tensor:
    """Return random tokens, int64 ``[rows, length]``."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def furthest(model: TransformerLM, tokens: Tensor, cuts: Sequence[int], prefix: int | None = None) -> float:
    """Return the largest difference between the logits of each chunk and those of the whole text so far.

    It is relative to the largest logit. `cuts` are the lengths of the chunks, in tokens."""
    decoder = Decoder(model, len(tokens), tokens.shape[1] + 2)
    at, gap = 0, 0.0
    for n in cuts:
        logits = decoder.feed(tokens[:, at : at + n], prefix if not at else None)
        prefixes = None if prefix is None else torch.full((len(tokens),), prefix)
        with torch.no_grad():
            wanted = model(tokens[:, : at + n], prefixes)[:, at:]
        assert logits.shape == wanted.shape
        gap = max(gap, float((logits - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
        at += n
    return gap


def shortened(cuts: Sequence[int], length: int) -> list[int]:
    """Return the same chunks for a text of `length` tokens."""
    out: list[int] = []
    for n in cuts:
        out.append(min(n, length - sum(out)))
    return [n for n in out if n > 0]


def decoded(cfg: RunConfig, prefix: int | None = None, kinds: Sequence[str] = tuple(CUTS)) -> dict[str, float]:
    """Return the largest difference between reading in chunks and at once, for each way of cutting a text (CUTS).

    Raises ConfigError for a model that cannot generate text."""
    model = scaled_model(cfg, 5.0).eval()
    for name, parameter in model.named_parameters():  # so that biases and gains have an effect
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
    kinds = ("pieces",) if subject.axis == "activation" else tuple(CUTS)  # an activation keeps no state
    try:
        gaps = decoded(subject.with_biases(), kinds=kinds)
    except ConfigError as error:
        return skips(str(error))
    worst = max(gaps, key=lambda kind: gaps[kind])
    if not gaps[worst] < 1e-4:
        return fails(f"read as {worst}, logits are {gaps[worst]:.2g} of the largest apart")
    return holds()
