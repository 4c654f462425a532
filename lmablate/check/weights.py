"""Checks of the weights of an option: how they are drawn, counted and reached by gradients."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lmablate.budget import flops_per_token, forward_products, parameters
from lmablate.check.finding import Finding, check, fails, holds, skips
from lmablate.check.small import first_loss
from lmablate.check.subject import Subject
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.model.primitives import Matrix
from lmablate.model.transformer import TransformerLM


@check(
    "parameters",
    asks="the predicted number of parameters is that of the built model",
    cost="rows, plan and budget=params state a wrong size, so that arms are not equal",
    mend="state matmul_params, n_bias_and_gain_params or n_params (docs/extend.md) for all weights of the class",
)
def counts(subject: Subject) -> Finding:
    for keys, chosen in (({}, {}), ({"model.bias": True, "model.tie_embeddings": True}, {"norm_position": "sandwich"})):
        try:
            cfg = subject.config(keys, **({} if subject.axis == "norm_position" else chosen))
        except ConfigError:
            if not keys:
                raise
            continue  # this option takes no biases
        model = build_model(cfg, device="meta")
        total = sum(p.numel() for p in model.parameters())
        predicted = parameters(cfg)
        if predicted.total != total:
            return fails(f"predicted {predicted.total:,}, built {total:,}{' with biases' if keys else ''}")
        if model.encoder is None and model.generator is None and predicted.non_embedding != total - _tables(model):
            return fails(f"predicted {predicted.non_embedding:,} beside the tables, built {total - _tables(model):,}")
    return holds(f"{parameters(subject.cfg).total:,}")


def _tables(model: TransformerLM) -> int:
    """Return the number of parameters in tables of tokens, segments and positions, and in the head."""
    parts = [model.embedding, model.segments, model.head, model.posemb if model.posemb.is_token_table else None]
    return sum(p.numel() for part in parts if isinstance(part, nn.Module) for p in part.parameters())


@check(
    "flops",
    asks="the predicted FLOPs are those of torch.utils.flop_counter",
    cost="flops_per_token and budget=flops are wrong",
    mend="state matmul_params and score_macs (docs/extend.md) for every matrix product",
)
def flops(subject: Subject) -> Finding:
    cfg = subject.cfg
    if flops_per_token(cfg) <= 0:
        return fails(f"flops_per_token is {flops_per_token(cfg)}")
    model = build_model(cfg, device="meta")
    if any(getattr(module, "shapes_depend_on_data", False) for module in model.modules()):
        return skips("the counter needs shapes that do not depend on data")
    if cfg.model.n_encoder_layers or model.generator is not None or model.readout is not None:
        return skips("of a model with one stack only")
    length = cfg.model.context_length
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros((1, length), dtype=torch.long, device="meta"))
    except (NotImplementedError, RuntimeError) as error:
        return skips(f"does not run on the meta device ({str(error).splitlines()[0]})")
    matrices, a_key = forward_products(cfg)
    predicted = 2 * (matrices + sum(a_key) * length)  # the counter counts all keys of a query, whatever the mask
    counted = counter.get_total_flops() / length
    if abs(predicted - counted) > 1e-9 * counted:
        return fails(f"{counted:,.0f} FLOPs of a forward pass and token, predicted {predicted:,.0f} (over all keys)")
    return holds(f"{flops_per_token(cfg):,} a token in training")


@check(
    "gradients",
    asks="every parameter gets a gradient",
    cost="weights that never learn are counted, decayed and saved",
    mend="use it, or drop it; may_be_idle names one that softmax cannot see (model/attention/heads.py)",
)
def gradients(subject: Subject) -> Finding:
    cfg = subject.with_biases()
    model = subject.model(5.0, cfg)
    first_loss(cfg, model).backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    idle = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "may_be_idle", ())
    }
    floor = 1e-7 * max(norms.values())
    if lost := sorted({name for name, norm in norms.items() if norm <= floor} - idle):
        return fails(f"none reaches {', '.join(lost[:3])}{' and others' * (len(lost) > 3)}")
    return holds()


@check(
    "draws",
    asks="a second build has equal weights and shares none with the first",
    cost="equal seeds give unequal runs, or one run changes another",
    mend="build weights from lmablate.model.primitives, and draw from torch's generator alone",
)
def draws(subject: Subject) -> Finding:
    one, two = subject.model(), subject.model()
    first, second = _tensors(one), _tensors(two)
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            return fails(f"{name} has other numbers in a second build of the same seed")
    owned = {p.data_ptr(): name for name, p in one.named_parameters() if p.numel()}
    if shared := [name for name, p in two.named_parameters() if p.data_ptr() in owned]:
        return fails(f"{shared[0]} is one tensor in two models")
    return holds()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@check(
    "layers apart",
    asks="no weight is shared between layers",
    cost="a layer is counted that has no weights of its own, and depth means something else",
    mend="make every nn.Parameter in __init__, and none on the class or in the module",
)
def layers_apart(subject: Subject) -> Finding:
    seen: dict[int, str] = {}
    for i, block in enumerate(subject.model().blocks):
        own = {p.data_ptr(): f"blocks.{i}.{name}" for name, p in block.named_parameters() if p.numel()}
        if again := seen.keys() & own.keys():
            pointer = min(again)
            return fails(f"{own[pointer]} is the memory of {seen[pointer]}")
        seen |= own
    return holds()


@check(
    "first scale",
    asks="how wide the weights are drawn, where the rule is not model.init_std",
    cost="",
    mend="",
)
def first_scale(subject: Subject) -> Finding:
    cfg, model = subject.cfg, subject.model()
    ours = {id(module.weight) for module in model.modules() if isinstance(module, Matrix)}
    own = [(name, p) for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in ours]
    if not own:
        return holds("every matrix by the rules of the model group")
    name, parameter = own[0]
    more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
    spread = f"{float(parameter.detach().float().std()):.3g} (model.init_std={cfg.model.init_std})"
    return holds(
        f"{name}{more} has a spread of {spread}: a rule of the part's or of torch's own, and not model.init_std"
    )
