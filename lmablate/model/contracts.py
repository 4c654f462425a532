"""What a class must be to stand on an axis: its base, how it is built, and how it is called.

docs/extend.md has a complete example of each.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError


class Contract(NamedTuple):
    """`base` is a dotted path, `gives` the arguments that the factory supplies to the constructor, `calls` those of
    ``forward``; None where the factory does not call it. `says` are attributes that the accounting reads from the class."""

    base: str
    gives: tuple[str, ...]
    calls: tuple[str, ...] | None
    says: tuple[str, ...] = ()

    def words(self, axis: str) -> str:
        """The contract, for messages."""
        name = self.base.rpartition(".")[2]
        keys = "*, layer, <the keys of its YAML>" if axis == "attention" else "*, <the keys of its YAML>"
        init = f"__init__({', '.join(('self', *self.gives, keys))})"
        forward = f" and forward({', '.join(('self', *self.calls))})" if self.calls else ""
        says = f", states {', '.join(self.says)}" if self.says else ""
        return (
            f"an option of {axis} is a subclass of {name} ({self.base}){says}, with {init}{forward}; see docs/extend.md"
        )


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
    """Raise ConfigError, with the contract in words, for a class that cannot be built or called as `place` does."""
    if (contract := CONTRACTS.get(place)) is None:
        return
    if wrong := _wrong(target, contract):
        name = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        raise ConfigError(f"{place}: {name} {wrong}; {contract.words(place)}")


@cache  # a budget asks thousands of times
def _wrong(target: Any, contract: Contract) -> str | None:
    home, _, base = contract.base.rpartition(".")
    if not inspect.isclass(target) or not issubclass(target, getattr(importlib.import_module(home), base)):
        return f"is no subclass of {base}"
    if missing := [name for name in contract.says if not hasattr(target, name)]:
        return f"has no {missing[0]}"
    if unfit := _unfit(target, "__init__", contract.gives):
        return f"cannot be built: __init__ {unfit}"
    if contract.calls is not None and (unfit := _unfit(target, "forward", contract.calls)):
        return f"cannot be called: forward {unfit}"
    return None


def _unfit(target: Any, method: str, gives: tuple[str, ...]) -> str | None:
    """What is wrong with the positional parameters of a method that is given so many arguments."""
    given = list(inspect.signature(getattr(target, method)).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in given):
        return None
    places = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < len(gives):
        return f"takes {len(places)} positional arguments and is given {', '.join(gives)}"
    if more := [p.name for p in places[len(gives) :] if p.default is p.empty]:
        return f"needs {', '.join(more)}, which nobody gives (the keys of a YAML follow a *)"
    return None
