"""Map our weights to theirs and back: names, and the order of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmablate.interop.model_spec import Spec
from lmablate.model.posemb import halves_to_pairs, pairs_to_halves


@dataclass(frozen=True)
class Form:
    """A layout of numbers. `pack` makes one tensor of theirs from some of ours, `unpack` undoes it; the spec gives the sizes."""

    pack: Callable[[Sequence[Tensor], Spec], Tensor]
    unpack: Callable[[Tensor, Spec], Sequence[Tensor]]


def _transposed(t: Tensor) -> Tensor:
    return t.T.contiguous() if t.ndim == 2 else t


def _qkv_rows(spec: Spec) -> list[int]:
    kv = spec["model.n_kv_heads"] * spec["model.head_dim"]
    return [spec["model.n_heads"] * spec["model.head_dim"], kv, kv]


def _groups(parts: Sequence[Tensor], spec: Spec) -> Tensor:
    """Return query, key and value rows as ``[groups, queries a group + 2, head_dim, ...]``, flattened."""
    groups, width = spec["model.n_kv_heads"], spec["model.head_dim"]
    return torch.cat([part.unflatten(0, (groups, -1, width)) for part in parts], 1).flatten(0, 2)


def _ungroup(whole: Tensor, spec: Spec) -> list[Tensor]:
    groups, width = spec["model.n_kv_heads"], spec["model.head_dim"]
    whole = whole.unflatten(0, (groups, -1, width))
    return [part.flatten(0, 2) for part in whole.split([whole.shape[1] - 2, 1, 1], 1)]


def conv1d(form: Form) -> Form:
    """Return the form for weights stored as [in, out] (GPT and GPT-2)."""
    return Form(
        lambda parts, spec: _transposed(form.pack(parts, spec)),
        lambda whole, spec: form.unpack(_transposed(whole), spec),
    )


SAME = Form(lambda parts, spec: parts[0], lambda whole, spec: [whole])
ROWS = Form(lambda parts, spec: torch.cat(list(parts)), lambda whole, spec: whole.split(_qkv_rows(spec)))
HALVES = Form(lambda parts, spec: torch.cat(list(parts)), lambda whole, spec: whole.chunk(2))
EXPERT_HALVES = Form(lambda parts, spec: torch.cat(list(parts), 1), lambda whole, spec: whole.chunk(2, 1))  # [E, ...]
GROUPS = Form(_groups, _ungroup)
FIRST_ROW = Form(lambda parts, spec: parts[0][None], lambda whole, spec: [whole[0]])  # a vector as a matrix of one row
CONV1D = conv1d(SAME)
CONV1D_ROWS = conv1d(ROWS)


def rows_before(count: int) -> Form:
    """Return the form of a table whose first rows are never read (OPT: positions start at row 2)."""
    return Form(
        lambda parts, spec: torch.cat((parts[0].new_zeros(count, parts[0].shape[1]), parts[0])),
        lambda whole, spec: [whole[count:]],
    )


@dataclass(frozen=True)
class Rule:
    """A rule that our weights `ours` make up their weight `theirs`; ``{i}`` in both stands for every layer."""

    ours: tuple[str, ...]
    theirs: str
    form: Form = SAME

    def layers(self, n_layers: int) -> list[Rule]:
        """Return the rule for each layer."""
        if "{i}" not in self.theirs:
            return [self]
        return [
            Rule(tuple(name.format(i=i) for name in self.ours), self.theirs.format(i=i), self.form)
            for i in range(n_layers)
        ]


def linear(ours: str | tuple[str, ...], theirs: str, form: Form = SAME) -> list[Rule]:
    """Return the rules of weight and bias of a linear layer."""
    names = (ours,) if isinstance(ours, str) else ours
    return [
        Rule(tuple(f"{name}.weight" for name in names), f"{theirs}.weight", form),
        Rule(tuple(f"{name}.bias.weight" for name in names), f"{theirs}.bias", form),
    ]


def experts(ours: str, theirs: str, shared: str | None, bias: str, form: Form = SAME) -> list[Rule]:
    """Return the rules of the router, the gated experts, and the shared ones.

    `shared` is the name of the shared ones in transformers; `bias` that of the bias on the choice, which has this `form`."""
    out = [
        Rule((f"{ours}.router.proj.weight",), f"{theirs}.gate.weight"),
        Rule((f"{ours}.router.bias",), f"{theirs}.{bias}", form),
        Rule((f"{ours}.shared_gate.weight",), f"{theirs}.{shared}_gate.weight"),
    ]
    both = tuple(f"{ours}.experts.{letter}_proj.weight" for letter in ("gate", "in"))
    out.append(Rule(both, f"{theirs}.experts.gate_up_proj", EXPERT_HALVES))
    out.append(Rule((f"{ours}.experts.out_proj.weight",), f"{theirs}.experts.down_proj"))
    for mine, their in {"gate": "gate", "in": "up", "out": "down"}.items():
        out += linear(f"{ours}.shared.{mine}_proj", f"{theirs}.{shared}.{their}_proj")
    return out


def norm(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of gain and bias of a norm."""
    return [Rule((f"{ours}.gain.weight",), f"{theirs}.weight"), Rule((f"{ours}.bias.weight",), f"{theirs}.bias")]


def ends(table: str, head: str, positions: Rule | None = None) -> list[Rule]:
    """Return the rules of the token table, the head, and a table of positions."""
    rules = [Rule(("embedding.weight",), table), Rule(("head.proj.weight",), f"{head}.weight")]
    rules.append(Rule(("head.bias.weight",), f"{head}.bias"))
    return rules if positions is None else [*rules, positions]


def translated(name: str, ours: Tensor, spec_here: Spec, spec_there: Spec) -> Tensor:
    """Return one of our weights as a model of `spec_there` stores it.

    Gains are stored as g or as g - 1, and heads are turned in pairs or halves."""
    prefix = "stability.qk_norm" if "_norm.gain" in name and ".branch" in name else "norm"
    if name.endswith("gain.weight"):
        shift = _offset(spec_here, prefix) - _offset(spec_there, prefix)
        ours = ours if not shift else ours + shift
    if {"q_proj", "k_proj", "q_norm", "k_norm"} & set(name.split(".")):
        ours = _turned(ours, spec_here, spec_there)
    return ours


def _offset(spec: Spec, prefix: str) -> int:
    return int(bool(spec.get(f"{prefix}.unit_offset")))


def _turned(rows: Tensor, here: Spec, there: Spec) -> Tensor:
    layouts = here.get("posemb.layout"), there.get("posemb.layout")
    if layouts[0] == layouts[1] or None in layouts or here["attention"] != "heads":
        return rows
    change = pairs_to_halves if layouts[0] == "pairs" else halves_to_pairs
    return change(rows, head_dim=here["model.head_dim"], width=here["posemb.width"])


def neutral(name: str, like: Tensor, spec_there: Spec) -> Tensor:
    """Return a weight without effect for a parameter that we do not have: a bias of 0, a gain of 1."""
    if name.endswith(("bias.weight", "router.bias")):
        return torch.zeros_like(like)
    return torch.full_like(like, 1.0 - _offset(spec_there, "norm"))


def expand(rules: Sequence[Rule], n_layers: int) -> Mapping[str, Rule]:
    """Return the rules of all layers by the name of their weight."""
    return {rule.theirs: rule for pattern in rules for rule in pattern.layers(n_layers)}
