"""Costs that the closed forms omit, traced from a training step of the model without arithmetic or allocation.

The step (forward, loss and backward of one text of ``context_length`` tokens) runs on tensors with a shape and no data, eagerly and as
on a CPU. Each operation then counts the bytes of the tensors it reads and writes, and one FLOP per element of the largest of them; a
view is free. Matrix products are left to the closed forms, and the softmax inside fused attention, which no operation shows, to
:func:`lmablate.budget.flops.softmax_flops`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmablate.budget.flops import flops_per_token, softmax_flops
from lmablate.model import components
from lmablate.model.factory import build_model
from lmablate.model.norm import RMSNorm
from lmablate.model.precision import compute_dtype, set_compute_dtype
from lmablate.objective import objective_of

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "baddbmm_", "matmul"})


class Work(NamedTuple):
    """The work of one text: floating-point operations, and bytes read or written."""

    flops: int
    bytes: int


class Step(NamedTuple):
    """A training step of one text.

    `saved_bytes`: memory from the forward pass for the backward pass, without weights. `products`, `norms` and `pointwise` (all else):
    the work of both passes, without the FLOPs of products. `fused`: attention has its softmax inside a kernel. `operators`: the work of
    `pointwise` by operator.
    """

    saved_bytes: int
    products: Work
    norms: Work
    pointwise: Work
    fused: bool
    operators: dict[str, Work]


class _Meter(TorchDispatchMode):
    """Adds up the work of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = Work(0, 0)
        self.by_name: dict[str, Work] = {}
        self.fused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # the loss tests whether its own gradient is 1, as it is in training
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        mutates = func._schema.is_mutable
        name = func._schema.name.split("::")[1]
        view = not mutates and {_storage(x) for x in written} & {_storage(x) for x in read}
        if not written or view or "empty" in name:
            return out
        size = sum(x.numel() * x.element_size() for x in (*read, *written))
        attention = "scaled_dot_product" in name
        self.fused |= attention
        if name in _PRODUCTS or attention:
            self.products = Work(0, self.products.bytes + size)
        else:
            largest = max(x.numel() for x in (*read, *written))
            self.others = _plus(self.others, Work(largest, size))
            self.by_name[name] = _plus(self.by_name.get(name, Work(0, 0)), Work(largest, size))
        return out


def _plus(a: Work, b: Work, sign: int = 1) -> Work:
    return Work(a.flops + sign * b.flops, a.bytes + sign * b.bytes)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class _Bound(nn.Module):
    """A model and its loss as one module, so that both use the same weights."""

    def __init__(self, model: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *batch: Tensor | None) -> Tensor:
        return self.objective(self.model, *batch).objective


class _Shapes:
    """Tensors without data whose device is a CPU."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def of(self, x: Tensor) -> Tensor:
        fake = FakeTensor(self.mode, x.detach().to("meta"), torch.device("cpu"))
        return fake.requires_grad_(x.requires_grad)

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        return {name: self.of(x) for name, x in (*module.named_parameters(), *module.named_buffers())}


def trace(cfg: RunConfig) -> Step:
    """Return the step of `cfg`, in its precision and with its dropout."""
    shapes = _Shapes()
    model = build_model(cfg, device="meta")
    set_compute_dtype(model, compute_dtype(cfg.trainer.precision))
    objective = objective_of(cfg)
    bound = _Bound(model, objective)
    state = shapes.state(bound)
    tokens = torch.zeros(1, cfg.model.context_length, dtype=torch.long)
    given = objective.batch(tokens, tokens, data_seed=0, step=0)
    fakes = {id(x): shapes.of(x) for x in given if x is not None}  # inputs and targets may be one tensor
    batch = tuple(None if x is None else fakes[id(x)] for x in given)
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with shapes.mode, _Meter() as meter, _norm_inputs(model, cfg) as normed:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = torch.func.functional_call(bound, state, batch)
        torch.autograd.grad(loss, [x for x in state.values() if x.requires_grad], allow_unused=True)
    weights = {_storage(x) for x in state.values()}
    sizes = {_storage(x): x.untyped_storage().nbytes() for x in saved if _storage(x) not in weights}
    norms, operators = Work(0, 0), dict(meter.by_name)
    for norm, x in normed:
        own = _norm_step(norm, x)
        norms = _plus(norms, own.others)
        for name, work in own.by_name.items():
            operators[name] = _plus(operators.get(name, Work(0, 0)), work, -1)
    rest = _plus(meter.others, norms, -1)
    return Step(sum(sizes.values()), meter.products, norms, rest, meter.fused, operators)


def norm_modules(model: nn.Module, cfg: RunConfig) -> list[nn.Module]:
    """Return the norms of a model or of a part of it: of the residual stream, of queries, keys and values."""
    named = {"norm": cfg.norm, "stability.qk_norm": cfg.stability.qk_norm, "stability.v_norm": cfg.stability.v_norm}
    kinds = (RMSNorm, *(components.target(part, place) for place, part in named.items() if part))
    return [module for module in model.modules() if isinstance(module, kinds)]


@contextmanager
def _norm_inputs(model: nn.Module, cfg: RunConfig) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Every norm of the model with its input, filled while the model runs."""
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [
        norm.register_forward_pre_hook(lambda norm, given: seen.append((norm, given[0])))
        for norm in norm_modules(model, cfg)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _norm_step(norm: nn.Module, x: Tensor) -> _Meter:
    """Both passes of one norm alone."""
    shapes = _Shapes()
    state = shapes.state(norm)
    given = shapes.of(torch.empty_like(x, device="meta")).requires_grad_()
    with shapes.mode, _Meter() as meter:
        y = torch.func.functional_call(norm, state, (given,))
        if y is not given:
            wanted = [given, *(x for x in state.values() if x.requires_grad)]
            torch.autograd.grad(y, wanted, shapes.of(torch.empty_like(y, device="meta")))
    return meter


def all_flops_per_token(cfg: RunConfig, step: Step) -> int:
    """Return the training FLOPs per token with norms, softmax and element-wise work. These are the FLOPs of the matrix products
    (:func:`flops_per_token`), and one per element that another operation works on."""
    softmax = softmax_flops(cfg) if step.fused else 0.0
    return round(flops_per_token(cfg) + softmax + (step.norms.flops + step.pointwise.flops) / cfg.model.context_length)
