"""Checks of a forward pass: shapes, numbers, dtypes, and what the logits depend on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmablate.check.finding import Finding, check, fails, holds, skips
from lmablate.check.subject import Subject
from lmablate.model.factory import pointwise
from lmablate.model.transformer import TransformerLM


def logits_of(model: TransformerLM, *inputs: Tensor) -> Tensor:
    """Return the logits, without gradients."""
    with torch.no_grad():
        return model(*inputs)


def gap_text(a: Tensor, b: Tensor) -> str:
    """Return the largest difference between two tensors, as text."""
    return f"{float((a - b).abs().max()):.2g} (the largest logit is {float(b.abs().max()):.2g})"


def _two_stacks(subject: Subject) -> Finding | None:
    if subject.model().encoder is not None:
        return skips("a model of two stacks reads texts of one length")
    return None


@check(
    "builds",
    asks="the model builds, and its logits have their shape and are finite",
    cost="nothing can be trained",
    mend="return [..., T, D] for [..., T, D], and divide by nothing that may be 0",
)
def builds(subject: Subject) -> Finding:
    model, tokens = subject.model(), subject.tokens()
    logits = logits_of(model, tokens)
    length = tokens.shape[1] - (model.source_length or 0)
    wanted = (len(tokens), length, logits.shape[-1] if model.head.proj is None else subject.cfg.model.vocab_size)
    if logits.shape != wanted:
        return fails(f"logits have the shape {list(logits.shape)}, and {list(wanted)} is asked for")
    if not torch.isfinite(logits).all():
        return fails(f"{int((~torch.isfinite(logits)).sum()):,} of {logits.numel():,} logits are not finite")
    return holds(f"{sum(p.numel() for p in model.parameters()):,} parameters in the small model")


@check(
    "lengths",
    asks="texts of 1, 2 and T tokens work, and a short text gets the logits of a long one's beginning",
    cost="evaluation at other lengths, sampling and short last texts stop, or give other numbers",
    mend="do not squeeze axes, and let nothing depend on x.shape[-2] (posemb: define moves())",
)
def lengths(subject: Subject) -> Finding:
    if skipped := _two_stacks(subject):
        return skipped
    model, tokens = subject.model(5.0).eval(), subject.tokens(2)
    longest = tokens.shape[1]
    whole = logits_of(model, tokens)
    alike = not model.reads_all and not any(getattr(m, "reads_whole_texts", False) for m in model.modules())
    for n in (1, 2, longest - 1):
        try:
            logits = logits_of(model, tokens[:, :n])
        except Exception as error:
            raise type(error)(f"at {n} token{'s' * (n > 1)}: {error}") from error
        if logits.shape != (2, n, whole.shape[-1]):
            return fails(f"a text of {n} gives logits of the shape {list(logits.shape)[1:-1]}")
        if not torch.isfinite(logits).all():
            return fails(f"a text of {n} gives logits that are not finite")
        same = torch.allclose(logits, whole[:, :n], rtol=1e-4, atol=1e-5)
        if alike and not model.posemb.moves(n, longest) and not same:
            return fails(
                f"the logits of {n} tokens alone and at the beginning of {longest} differ by {gap_text(logits, whole[:, :n])}"
            )
    return holds()


@check(
    "lead axes",
    asks="a stack of batches gives the stack of the results",
    cost="runs cannot train as one gang",
    mend="name axes from the end (x.shape[-2], dim=-1), and flatten nothing before them",
)
def lead_axes(subject: Subject) -> Finding:
    model, rows = subject.model().eval(), subject.tokens(4)
    one, two = rows[:2], rows[2:]
    logits = logits_of(model, torch.stack((one, two)))
    wanted = torch.stack((logits_of(model, one), logits_of(model, two)))
    if logits.shape != wanted.shape:
        return fails(f"logits have the shape {list(logits.shape)}, and {list(wanted.shape)} is asked for")
    return (
        holds()
        if torch.allclose(logits, wanted, rtol=1e-5, atol=1e-6)
        else fails(f"logits differ by {gap_text(logits, wanted)}")
    )


@check(
    "rows apart",
    asks="a text's logits do not depend on the other texts of the batch",
    cost="the loss hangs on batch size and on what else is in the batch; evaluation and sampling give other numbers",
    mend="take means over the last axis or over a text, never over the batch (as BatchNorm does)",
)
def rows_apart(subject: Subject) -> Finding:
    if subject.cfg.model.dropout:
        return skips("model.dropout is on")
    model, tokens = subject.model(5.0), subject.tokens()
    for mode in (True, False):
        whole = logits_of(model.train(mode), tokens)
        alone = logits_of(model, tokens[1:2])
        if not torch.allclose(whole[1:2], alone, rtol=1e-4, atol=1e-5):
            return fails(
                f"{'in training' if mode else 'in evaluation'}, logits in a batch and alone differ by {gap_text(whole[1:2], alone)}"
            )
    return holds()


@check(
    "no chance",
    asks="two passes over the same tokens agree to the bit",
    cost="equal seeds give unequal runs, and validation loss is a random number",
    mend="draw nothing in forward(); what a text needs at random hangs on its tokens (model/ffn/hashing.py)",
)
def no_chance(subject: Subject) -> Finding:
    if subject.cfg.model.dropout:
        return skips("model.dropout is on")
    model, tokens = subject.model(), subject.tokens()
    for mode in (True, False):
        model.train(mode)
        one, two = logits_of(model, tokens), logits_of(model, tokens)
        if not torch.equal(one, two):
            return fails(f"two passes {'in training' if mode else 'in evaluation'} differ by {gap_text(one, two)}")
    return holds()


@check(
    "no memory",
    asks="a pass does not depend on the passes before it",
    cost="validation changes the training, and a resumed run differs from an unbroken one",
    mend="keep nothing between passes, or make it anew where length, batch or mode differ",
)
def no_memory(subject: Subject) -> Finding:
    if skipped := _two_stacks(subject):
        return skipped
    fresh, used, tokens = subject.model().eval(), subject.model(), subject.tokens()
    wanted = logits_of(fresh, tokens)
    other = tokens.flip(0, 1)
    longest = tokens.shape[1] + (0 if used.posemb.bounded else 5)
    for rows in (other[:2, :5], torch.cat((other, other), 1)[:, :longest], other[:, :2]):
        if subject.cfg.model.dropout:
            break
        used.train()(rows).square().mean().backward()
        logits_of(used.eval(), rows)
    used.zero_grad(set_to_none=True)
    logits = logits_of(used.eval(), tokens)
    if torch.equal(logits, wanted):
        return holds()
    return fails(
        f"after passes of other lengths, in training, the logits of the same tokens differ by {gap_text(logits, wanted)}"
    )


class _Watch:
    """Hooks that record changes of inputs and dtypes in every module."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype, self.changed, self.strange = dtype, [], []  # type: ignore[var-annotated]
        for module in model.modules():
            module.register_forward_pre_hook(self._before)
            module.register_forward_hook(self._after)
        self._versions: list[list[int]] = []

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._versions.append([x._version for x in _floats(args)])

    def _after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if self._versions.pop() != [x._version for x in _floats(args)]:
            self.changed.append(_named(module))
        outs = out if isinstance(out, tuple) else (out,)
        self.strange += [(_named(module), x.dtype) for x in _floats(outs) if x.dtype != self.dtype]


def _floats(values: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]


def _named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


class _AsModule(nn.Module):
    """A module around a plain function, so that it can be watched."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def _watched(subject: Subject) -> _Watch:
    """Pass the tokens through the model, and tensors through its plain functions. Return the record."""
    model, cfg = subject.model(), subject.cfg
    watch = _Watch(model, torch.float32)
    try:
        logits_of(model, subject.tokens())
    except RuntimeError:
        if not watch.strange:  # else it is the reason
            raise
    functions = {
        "activation": (pointwise(cfg.activation.fn), [torch.randn(2, 3, cfg.model.d_ff)]),
        "posemb.embed": (model.posemb.embed, [torch.randn(2, 6, cfg.model.embedding_dim or cfg.model.d_model)]),
    }
    for name, (function, tensors) in functions.items():
        one = _AsModule(function)
        own = _Watch(one, torch.float32)
        with torch.no_grad():
            one(*tensors)
        watch.changed += [name for _ in own.changed]
        watch.strange += [(name, dtype) for _, dtype in own.strange]
    return watch


@check(
    "inputs kept",
    asks="no module changes its input in place",
    cost="the residual stream is another one than the block says, and gradients may be wrong",
    mend="write x = x * 2 for x *= 2 and x.mul_(2); no inplace=True",
)
def inputs_kept(subject: Subject) -> Finding:
    tokens = subject.tokens()
    before = tokens.clone()
    logits_of(subject.model(), tokens)
    if not torch.equal(tokens, before):
        return fails("the tokens are changed")
    if changed := _watched(subject).changed:
        return fails(f"{changed[0]} changes what it is given")
    return holds()


@check(
    "dtypes kept",
    asks="fp32 in gives fp32 out, in every module",
    cost="precision is lost where trainer.precision says fp32, or products stop for unequal dtypes",
    mend="return y.to(x.dtype), and make constants with x.new_tensor or dtype=x.dtype",
)
def dtypes_kept(subject: Subject) -> Finding:
    if strange := _watched(subject).strange:
        name, dtype = strange[0]
        return fails(f"{name} returns {str(dtype).removeprefix('torch.')} for float32")
    return holds()
