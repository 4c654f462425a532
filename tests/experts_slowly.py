"""Mixtures of experts token by token and sum by sum: what the fast ones must equal, outputs, gradients and losses."""

import math

import torch
import torch.nn.functional as F
import yaml

from lmablate.core.paths import CONF_DIR
from lmablate.model import ffn
from lmablate.model.ffn.hashing import hash_each, normal, prefix_hash
from lmablate.model.init import Spread, initialise
from lmablate.model.posemb import AttentionContext

D_MODEL, D_FF, LENGTH, TEXTS = 12, 16, 10, 3
OF_TOKENS = {
    "after": ("token_choice", {}),
    "before": ("token_choice", {"normalise": False}),
    "one": ("token_choice", {"k": 1, "normalise": False}),
    "all": ("token_choice", {"n_experts": 3, "k": 3, "normalise": False}),
    "sigmoid": ("token_choice", {"scores": "sigmoid", "scale": 2.5}),
    "noisy": ("noisy_top_k", {}),
    "fine_grained": ("fine_grained", {}),
    "gated_shared": ("fine_grained", {"shared": 2, "shared_gate": True}),
    "groups_max": ("fine_grained", {"groups": 4, "group_k": 2, "scale": 16.0}),
    "groups_top_2": ("loss_free", {"groups": 4, "group_k": 2, "group_best": 2}),
    "loss_free": ("loss_free", {}),
    "capacity": ("token_choice", {"capacity_factor": 0.6}),
    "one_place_each": ("token_choice", {"capacity_factor": 0.01}),
    "hash": ("hash", {"k": 3}),
}


def file_of(name):
    return yaml.safe_load((CONF_DIR / "ffn" / f"{name}.yaml").read_text())


def made(name, *, bias=True, gated=True, layer=1, length=LENGTH, **changes):
    """The branch of an option, with weights far from rest."""
    part = file_of(name) | changes
    kind = getattr(ffn, part.pop("_target_").rpartition(".")[2])
    shape = ffn.FFNShape(D_MODEL, D_FF, gated, bias, 0.0, length, lambda: F.silu)
    module = kind(**part).branch(shape, layer=layer)
    initialise(module, "test", seed=0, std=Spread(0.5, 0.5, row_scale=1.0, tied=False), out_proj_scale=1.0)
    for i, p in enumerate(module.parameters()):
        if p.ndim == 1:
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return module


def text(texts=TEXTS, length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 64, (texts, length), generator=generator)
    return torch.randn(texts, length, D_MODEL, generator=generator), tokens


def positions(tokens):
    return AttentionContext(lambda q, k: (q, k), None, tokens=tokens)


def network(part, e, x):
    """Expert e of stacked weights on one token's vector."""

    def linear(proj, x):
        out = proj.weight[e] @ x
        return out if proj.bias is None else out + proj.bias.weight.view(len(proj.weight), -1)[e]

    inner = linear(part.in_proj, x)
    return linear(
        part.out_proj, F.silu(linear(part.gate_proj, x)) * inner if hasattr(part, "gate_proj") else F.silu(inner)
    )


def shared(module, x, where):
    if module.shared is None:
        return 0.0
    out = module.shared(x, where)
    return out if module.shared_gate is None else out / (1 + torch.exp(-(x @ module.shared_gate.weight.T)))


def chosen_experts(module, x, earlier, layer):
    """[(expert, weight)] of one token, whose text so far, itself included, is `earlier`; and all scores."""
    router, n = module.router, module.n_experts
    if not hasattr(router, "proj"):
        words = hash_each(earlier[-1:], n, layer)[0]
        order = sorted(range(n), key=lambda e: -((int(words[e]) >> 40) & 0xFFFFFF))
        return [(e, 1 / router.k) for e in order[: router.k]], None, None
    h = router.proj.weight @ x
    if router.noise_proj is not None and module.training:
        z = normal(hash_each(prefix_hash(earlier)[-1:], n, layer))[0]
        h = h + z * torch.log1p(torch.exp(router.noise_proj.weight @ x))
    s = torch.special.expit(h) if router.sigmoid else torch.exp(h) / torch.exp(h).sum()
    value = {e: s[e].item() + (0.0 if router.bias is None else router.bias[e].item()) for e in range(n)}
    if (g := router.groups) is not None:
        size = n // g.n
        members = [range(i * size, (i + 1) * size) for i in range(g.n)]
        judged = [sum(sorted((value[e] for e in m), reverse=True)[: g.best]) for m in members]
        allowed = sorted(range(g.n), key=lambda i: -judged[i])[: g.k]
        value = {e: value[e] for i in allowed for e in members[i]}
    best = sorted(value, key=lambda e: -value[e])[: router.k]
    total = sum(s[e] for e in best) if router.normalise else 1.0
    return [(e, router.scale * s[e] / total) for e in best], s, h


def slow(module, x, tokens, layer=1):
    """Token by token; the outputs, what each token chose (dropped ones too), the scores before and after softmax."""
    out, chosen, scores, logits = torch.zeros_like(x), [], [], []
    capacity = math.inf
    if module.capacity_factor is not None:
        capacity = math.ceil(module.capacity_factor * module.router.k * x.shape[1] / module.n_experts)
    for i, one in enumerate(x):
        taken = [0] * module.n_experts
        for t, vector in enumerate(one):
            picks, s, h = chosen_experts(module, vector, tokens[i, : t + 1], layer)
            total = torch.zeros(x.shape[-1])
            for e, weight in picks:
                if taken[e] < capacity:
                    total = total + weight * network(module.experts, e, vector)
                taken[e] += 1
            out = out.index_put((torch.tensor(i), torch.tensor(t)), total)
            chosen.append([e for e, _ in picks]), scores.append(s), logits.append(h)
    return out + shared(module, x, positions(tokens)), chosen, scores, logits


def slow_losses(chosen, scores, logits, balance, n_experts, texts, length):
    """The formulas of balance.py, sum by sum."""
    total = torch.zeros(())
    spans = (
        [range(texts * length)] if balance.whole_batch else [range(i * length, (i + 1) * length) for i in range(texts)]
    )
    chances = [s / s.sum() for s in scores]
    for span in spans:
        k = len(chosen[0])
        f = [n_experts / (k * len(span)) * sum(e in chosen[t] for t in span) for e in range(n_experts)]
        p = [sum(chances[t][e] for t in span) / len(span) for e in range(n_experts)]
        total = total + balance.balance / len(spans) * sum(a * b for a, b in zip(f, p, strict=True))
        size = n_experts // balance.n_groups
        for d in range(balance.n_groups):
            own = range(d * size, (d + 1) * size)
            total = total + balance.device / len(spans) * (sum(f[e] for e in own) / size) * sum(p[e] for e in own)
            sent = balance.n_groups / (balance.group_k * len(span)) * sum(bool(set(own) & set(chosen[t])) for t in span)
            total = total + balance.communication / len(spans) * sent * sum(p[e] for e in own)
    z = sum(torch.log(torch.exp(h).sum()) ** 2 for h in logits) / len(logits)
    return total + balance.router_z * z


def gradients(module, y, x, extra=None):
    for p in module.parameters():
        p.grad = None
    loss = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(5))).sum()
    (loss if extra is None else loss + extra).backward()
    found = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return found | {"x": x.grad.clone()}


def assert_same_gradients(fast, slowly):
    assert fast.keys() == slowly.keys()
    for name, gradient in fast.items():
        other = slowly[name]
        if gradient is None or other is None:
            assert gradient is other or not (other if gradient is None else gradient).any(), name
        else:
            torch.testing.assert_close(
                gradient, other, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def both_ways(module, tokens, x, balance=None):
    """Outputs and gradients, fast and slow."""
    results = []
    for how in ("fast", "slow"):
        given = x.clone().requires_grad_()
        if how == "fast":
            module.extra_loss = None
            y, extra = module(given, positions(tokens)), module.extra_loss
        else:
            y, chosen, scores, logits = slow(module, given, tokens)
            extra = None
            if balance is not None and balance.on and module.training:
                extra = slow_losses(chosen, scores, logits, balance, module.n_experts, *x.shape[:2])
        results.append((y.detach(), gradients(module, y, given, extra), extra))
    return results
