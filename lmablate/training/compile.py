"""torch.compile, for runs with ``runtime.compile=true``.

A run's own configuration alone decides whether it is compiled. Compiled and eager steps round differently, so a choice that depended on
the other runs of a grid would give one run two losses.

A shallow model is compiled in one piece with its loss, a deep one block by block, so that its layers share a graph. Shapes are fixed, so
that a graph computes the same numbers whatever was compiled before it. Evaluation stays eager: its graphs would serve a few passes only.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.core.paths import cache_dir
from lmablate.schema.identity import GRAPH

if TYPE_CHECKING:
    from torch import nn

    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)
SHALLOW = 8  # layers of a model that is compiled in one piece


def compile_model(
    model: TransformerLM, cfg: RunConfig, try_out: Callable[[], Any], objective: nn.Module | None = None
) -> str | None:
    """Compile `model` in place; return None, or the reason why it stays eager. `try_out` runs a forward and backward pass, so that a
    failure shows before the first step. If `objective` is given, which computes the loss of `model`, both may become one graph."""
    if (why := missing_compiler(model.embedding.weight.device.type)) is None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache(cfg.runtime.cache_dir))
        import torch._dynamo

        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64  # per part: options by layer, gang sizes, the last batch
        parts: list[nn.Module] = model.all_blocks()
        if objective is not None and len(parts) <= SHALLOW and not any(_breaks(module) for module in model.modules()):
            parts = [objective]
        try:
            for module in model.modules():
                if _breaks(module):
                    module.forward = torch._dynamo.disable(module.forward)
            for part in parts:
                part.compile()
            try_out()
            return None
        except Exception as error:
            why = f"torch.compile failed: {str(error).strip().splitlines()[-1]}"
            for part in parts:
                part._compiled_call_impl = None
        finally:
            model.zero_grad(set_to_none=True)
    log.warning("runtime.compile: %s; this run goes on without it", why)
    return why


def _breaks(module: nn.Module) -> bool:
    """Return True for a module that no graph can contain."""
    return bool(getattr(module, "shapes_depend_on_data", False))


def missing_compiler(device: str) -> str | None:
    """Return why `device` cannot compile, or None: on CPUs torch.compile needs a C++ compiler."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device == "cpu" and not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({' or '.join(names)}) is installed"
    return None


def graph_of(cfg: RunConfig) -> str:
    """Return a key of the compiled graph: runs with equal keys compile the same one, whatever their text."""
    from lmablate.training.gang import FUSIBLE_KEYS

    graph = cfg.model_dump(include=set(GRAPH))
    for group, names in FUSIBLE_KEYS.items():
        graph[group] = {name: value for name, value in graph[group].items() if name not in names}
    return json.dumps([graph, cfg.runtime.microbatch_size], sort_keys=True, default=str)


def compile_cache(cache: str | None) -> Path:
    """Return the folder for compiled graphs: the user's, else one in the cache folder `cache`, which outlives /tmp."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    # Some imports of torch set the variable to its default, as if the user had.
    if given and not Path(given).name.startswith("torchinductor_"):
        return Path(given)
    return ((Path(cache) if cache else cache_dir()) / "inductor").absolute()
