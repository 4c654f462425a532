"""Costs of parts without closed forms: parameters by building on the meta device, FLOPs by torch's flop counter.

Shipped parts have closed forms, which the tests compare with the built model. A user's class may define the same methods; an inherited
one does not cover what the subclass adds. So each method counts if the class itself defines it. Otherwise the part is built without
memory, counted, and run through ``torch.utils.flop_counter`` at two lengths. What grows linearly with the length is the work per token.
What grows with its square is the work per pair of query and key, which causal masks and windows then reduce as for shipped attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lmablate.budget.parameters import attention_params as stated_attention
from lmablate.core.axes import PARTS
from lmablate.core.errors import ConfigError
from lmablate.core.source_code import is_shipped
from lmablate.model import components
from lmablate.model.dims import attention_shape, ffn_option, ffn_shape, position_shape
from lmablate.model.factory import pointwise
from lmablate.model.posemb import AttentionContext, PosEmb

if TYPE_CHECKING:
    from lmablate.schema.run_config import RunConfig

# Methods with closed forms, by axis: of parameters, of FLOPs, and of the cache.
PARAMS = {
    "norm": ("n_params",),
    "attention": ("matmul_params", "n_bias_and_gain_params"),
    "posemb": ("n_params",),
    "ffn": ("n_params",),
}
FLOPS = {
    "attention": ("matmul_params", "score_macs"),
    "posemb": ("matmul_params", "score_macs"),
    "ffn": ("matmul_params",),
}
CACHE = ("cached_numbers",)


class MacCounts(NamedTuple):
    """Multiply-adds of matrix products per token, and per pair of a query and a key."""

    per_token: float
    per_key: float


def states(target: Any, names: tuple[str, ...]) -> bool:
    """Return True if a class states these costs itself: it is shipped, or defines the methods."""
    return is_shipped(target) or all(name in vars(target) for name in names)


def measures_flops(cfg: RunConfig) -> list[str]:
    """Return the axes of `cfg` whose FLOPs torch's flop counter counts, since their classes do not state them."""
    found = [axis for axis in PARTS if not _states_flops(cfg, axis)]
    whole = {"norm", "norm_position", "block_layout", "activation"} & set(found)
    none = not whole or not shell_work(cfg).per_token  # most norms and activations multiply no matrices
    return [axis for axis in found if axis in FLOPS or not none]


def _states_flops(cfg: RunConfig, axis: str) -> bool:
    part = cfg.activation.fn if axis == "activation" else getattr(cfg, axis)
    if part is None or part["_target_"].startswith("torch."):
        return True
    target = components.target(part, axis)
    return states(target, FLOPS[axis]) if axis in FLOPS else is_shipped(target)


_known: dict[str, Any] = {}


def _once(what: str, cfg: RunConfig, measure: Callable[[], Any]) -> Any:
    """Cache a measurement, since budgets request the same sizes many times."""
    sizes = (cfg.norm, cfg.norm_position, cfg.attention, cfg.posemb, cfg.block_layout, cfg.ffn, cfg.activation)
    key = f"{what}|{sizes}|{cfg.model}|{cfg.stability}"
    if key not in _known:
        _known[key] = measure()
    return _known[key]


# --- Parameters ---------------------------------------------------------------------------------------------------------


def n_params(module: nn.Module) -> int:
    """Return the number of parameters of a built part, each once."""
    return sum(p.numel() for p in module.parameters())


def attention_params(cfg: RunConfig, layer: int) -> int:
    """Return those of an attention branch, including its norms."""
    return _once(f"attention {layer}", cfg, lambda: n_params(_attention(cfg, layer)))


def ffn_params(cfg: RunConfig, layer: int) -> int:
    """Return those of a feed-forward branch."""
    return _once(f"ffn {layer}", cfg, lambda: n_params(_ffn(cfg, layer)))


def shell_params(cfg: RunConfig) -> int:
    """Return those of a block without its branches: norms, and additions of a user's layout or norm position."""
    return _once("shell", cfg, lambda: n_params(_shell(cfg)))


def _attention(cfg: RunConfig, layer: int) -> nn.Module:
    with torch.device("meta"):
        return components.build(cfg.attention, "attention")(attention_shape(cfg), layer=layer)


def _ffn(cfg: RunConfig, layer: int) -> nn.Module:
    with torch.device("meta"):
        return ffn_option(cfg).branch(ffn_shape(cfg), layer=layer)


class _Through(nn.Module):
    """A branch without weights."""

    def forward(self, x: Tensor, positions: AttentionContext) -> Tensor:
        return x


def _shell(cfg: RunConfig) -> nn.Module:
    new_norm = partial(components.build(cfg.norm, "norm"), cfg.model.d_model)
    place = partial(components.build(cfg.norm_position, "norm_position"), norm=new_norm, n_layers=cfg.model.n_layers)
    with torch.device("meta"):
        return components.build(cfg.block_layout, "block_layout")(_Through(), _Through(), place)


# --- Work ----------------------------------------------------------------------------------------------------------------


def attention_work(cfg: RunConfig, layer: int) -> MacCounts:
    """Return the work of an attention branch."""
    return _once(f"attention work {layer}", cfg, lambda: _of_branch(cfg, "attention", _attention(cfg, layer)))


def ffn_work(cfg: RunConfig, layer: int) -> MacCounts:
    """Return the work of a feed-forward branch."""
    return _once(f"ffn work {layer}", cfg, lambda: _of_branch(cfg, "ffn", _ffn(cfg, layer)))


def posemb_work(cfg: RunConfig) -> MacCounts:
    """Return the work of a position embedding in one layer; its table is added once and counts with the first layer."""
    return _once("posemb work", cfg, lambda: _of_posemb(cfg))


def shell_work(cfg: RunConfig) -> MacCounts:
    """Return the work of a block without its branches, and of a user's activation; without a matrix there is none."""
    return _once("shell work", cfg, lambda: _of_shell(cfg))


def cached_numbers(cfg: RunConfig) -> int:
    """Return how many numbers an attention branch caches per token in generation; 0 if it cannot generate."""
    cached = getattr(_attention(cfg, 0), "cached", None)
    try:
        return sum(heads * width for heads, width in cached()) if cached else 0
    except NotImplementedError:
        return 0


def _of_branch(cfg: RunConfig, axis: str, branch: nn.Module) -> MacCounts:
    width = cfg.model.d_model

    def run(length: int) -> None:
        x = torch.zeros(1, length, width, device="meta")
        branch(x, _positions(length))

    return _fitted(cfg, axis, run)


def _of_posemb(cfg: RunConfig) -> MacCounts:
    shape = position_shape(cfg)
    with torch.device("meta"):
        posemb: PosEmb = components.build(cfg.posemb, "posemb")(shape)

    def run(length: int) -> None:
        heads = torch.zeros(1, shape.n_heads, length, shape.head_dim, device="meta")
        posemb.embed(torch.zeros(1, length, shape.d_model, device="meta"))
        posemb.rotate(heads, heads)
        posemb.score_bias(length)
        posemb.relative(heads, 0)

    longest = cfg.model.context_length if posemb.bounded else None
    return _fitted(cfg, "posemb", run, longest)


def _of_shell(cfg: RunConfig) -> MacCounts:
    shell = _shell(cfg)
    with torch.device("meta"):
        fn = pointwise(cfg.activation.fn)
    learned = [*shell.parameters(), *(fn.parameters() if isinstance(fn, nn.Module) else ())]
    if all(p.ndim < 2 for p in learned):
        return MacCounts(0.0, 0.0)

    def run(length: int) -> None:
        shell(torch.zeros(1, length, cfg.model.d_model, device="meta"), _positions(length))
        if not _states_flops(cfg, "activation"):
            fn(torch.zeros(1, length, cfg.model.d_ff, device="meta"))

    return _fitted(cfg, "block_layout", run)


def _positions(length: int) -> AttentionContext:
    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    return AttentionContext(lambda q, k: (q, k), None, tokens=tokens)


def _fitted(cfg: RunConfig, axis: str, run: Callable[[int], None], longest: int | None = None) -> MacCounts:
    """``F(T) = a T + b T^2`` through two lengths."""
    long = longest or 2 * cfg.model.context_length
    short = max(1, long // 2)
    first, second = (_products(cfg, axis, partial(run, length)) for length in (short, long))
    if short == long:
        return MacCounts(first / short, 0.0)
    per_key = (second / long - first / short) / (long - short)
    return MacCounts(first / short - per_key * short, per_key)


def _products(cfg: RunConfig, axis: str, run: Callable[[], None]) -> float:
    """Multiply-adds of one pass, which allocates nothing. Raises ConfigError if it needs data."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
    except Exception as error:
        names = ", ".join(FLOPS.get(axis, ()))
        option = cfg.choices.get(axis)
        raise ConfigError(
            f"{axis}={option}: its FLOPs cannot be counted on tensors without data ({_first_line(error)}): "
            + (f"have its class say them ({names}; see docs/extend.md)" if names else "see docs/extend.md")
        ) from error
    return counter.get_total_flops() / 2


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


# --- What is stated against what is built --------------------------------------------------------------------------------


def disagreements(cfg: RunConfig) -> Iterator[tuple[str, Any, int, int]]:
    """Yield (axis, class, stated, built) for every part whose closed form of its parameters differs from what it builds."""

    def differs(axis: str, stated: int, built: int) -> Iterator[tuple[str, Any, int, int]]:
        if stated != built:
            yield axis, components.target(getattr(cfg, axis), axis), stated, built

    with torch.device("meta"):
        norm = components.build(cfg.norm, "norm")(cfg.model.d_model)
        posemb = components.build(cfg.posemb, "posemb")(position_shape(cfg))
    yield from differs("norm", components.count(cfg.norm, "norm", cfg.model.d_model), n_params(norm))
    yield from differs("posemb", components.count(cfg.posemb, "posemb", position_shape(cfg)), n_params(posemb))
    yield from differs("attention", stated_attention(cfg), n_params(_attention(cfg, 0)))
    if cfg.ffn is not None:
        layer = cfg.model.n_layers - 1
        stated = ffn_option(cfg).n_params(ffn_shape(cfg), layer=layer)
        yield from differs("ffn", stated, n_params(_ffn(cfg, layer)))
