"""The contract of a class on each axis: its base class, its constructor and its ``forward``.

docs/extend.md has a complete example of each.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError


class Contract(NamedTuple):
    """The requirements on a class of one axis. `base` is a dotted path, `init_args` the constructor arguments from the factory,
    `forward_args` the arguments of ``forward`` (None: not called), `attributes` the class attributes that the accounting reads."""

    base: str
    init_args: tuple[str, ...]
    forward_args: tuple[str, ...] | None
    attributes: tuple[str, ...] = ()

    def describe(self, axis: str) -> str:
        """Return the contract as text, for messages."""
        name = self.base.rpartition(".")[2]
        keys = "*, layer, <the keys of its YAML>" if axis == "attention" else "*, <the keys of its YAML>"
        init = f"__init__({', '.join(('self', *self.init_args, keys))})"
        forward = f" and forward({', '.join(('self', *self.forward_args))})" if self.forward_args else ""
        attributes = f", states {', '.join(self.attributes)}" if self.attributes else ""
        return f"an option of {axis} is a subclass of {name} ({self.base}){attributes}, with {init}{forward}; see docs/extend.md"


CONTRACTS = {
    "norm": Contract("torch.nn.Module", ("d_model",), ("x",)),
    "norm_position": Contract(
        "lmablate.model.norm_position.NormPosition", ("branch", "norm", "n_layers"), ("x", "positions")
    ),
    "posemb": Contract("lmablate.model.posemb.PosEmb", ("shape",), None),
    "attention": Contract("lmablate.model.attention.Attention", ("shape",), ("x", "positions")),
    "block_layout": Contract("torch.nn.Module", ("attention", "ffn", "place"), ("x", "positions"), ("n_branches",)),
    "ffn": Contract("lmablate.model.ffn.FFNOption", (), None),
}
CONTRACTS |= dict.fromkeys(("stability.qk_norm", "stability.v_norm"), CONTRACTS["norm"])


def check_contract(target: Any, place: str) -> None:
    """Raise ConfigError, with the contract as text, for a class that cannot be built or called on the axis `place`."""
    if (contract := CONTRACTS.get(place)) is None:
        return
    if wrong := _wrong(target, contract):
        name = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        raise ConfigError(f"{place}: {name} {wrong}; {contract.describe(place)}")


@cache  # a budget search calls this thousands of times
def _wrong(target: Any, contract: Contract) -> str | None:
    home, _, base = contract.base.rpartition(".")
    if not inspect.isclass(target) or not issubclass(target, getattr(importlib.import_module(home), base)):
        return f"is no subclass of {base}"
    if missing := [name for name in contract.attributes if not hasattr(target, name)]:
        return f"has no {missing[0]}"
    if unfit := _unfit(target, "__init__", contract.init_args):
        return f"cannot be built: __init__ {unfit}"
    if contract.forward_args is not None and (unfit := _unfit(target, "forward", contract.forward_args)):
        return f"cannot be called: forward {unfit}"
    return None


def _unfit(target: Any, method: str, args: tuple[str, ...]) -> str | None:
    """The mismatch between the positional parameters of a method and the arguments it gets; None if they fit."""
    given = list(inspect.signature(getattr(target, method)).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return None
    positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < len(args):
        return f"takes {len(positional)} positional arguments and is given {', '.join(args)}"
    if extra := [p.name for p in positional[len(args) :] if p.default is p.empty]:
        return f"needs {', '.join(extra)}, which nobody gives (the keys of a YAML follow a *)"
    return None
