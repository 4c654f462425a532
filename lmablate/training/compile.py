"""torch.compile, for runs that ask for it: ``runtime.compile=true``.

Whether a run is compiled is decided by its own command alone: compiled and eager steps round differently, so that a choice by
what stands beside a run in a grid would give one run two losses.

A model is compiled block by block, so that a deeper one reuses its graph, with fixed shapes, so that a graph computes the
same numbers whatever was compiled before it. Evaluation stays eager: its graphs would be compiled for a few passes only.
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
    from lmablate.model.transformer import TransformerLM
    from lmablate.schema.run_config import RunConfig

log = logging.getLogger(__name__)


def compile_blocks(model: TransformerLM, cfg: RunConfig, try_out: Callable[[], Any]) -> str | None:
    """Compile `model` in place; None if that worked, else why not, and the model stays eager.

    `try_out` takes a forward and backward pass, so that what cannot be compiled shows before the first step.
    """
    if (why := missing_compiler(model.embedding.weight.device.type)) is None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache(cfg.runtime.cache_dir))
        import torch._dynamo

        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64  # of a block's code: options by layer, sizes of a gang, a last batch
        try:
            for module in model.modules():
                if getattr(module, "shapes_depend_on_data", False):
                    module.forward = torch._dynamo.disable(module.forward)
            for block in model.all_blocks():
                block.compile()
            try_out()
            return None
        except Exception as error:
            why = f"torch.compile failed: {str(error).strip().splitlines()[-1]}"
            for block in model.all_blocks():
                block._compiled_call_impl = None
        finally:
            model.zero_grad(set_to_none=True)
    log.warning("runtime.compile: %s; this run goes on without it", why)
    return why


def missing_compiler(device: str) -> str | None:
    """Why nothing can be compiled here, if so: torch.compile needs a C++ compiler on CPUs."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device == "cpu" and not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({' or '.join(names)}) is installed"
    return None


def graph_of(cfg: RunConfig) -> str:
    """Runs with equal answers compile the same graph, whatever text they read."""
    from lmablate.training.gang import FUSIBLE_KEYS

    told = cfg.model_dump(include=set(GRAPH))
    for group, names in FUSIBLE_KEYS.items():
        told[group] = {name: value for name, value in told[group].items() if name not in names}
    return json.dumps([told, cfg.runtime.microbatch_size], sort_keys=True, default=str)


def compile_cache(ours: str | None) -> Path:
    """The user's folder for compiled graphs, else one beside the token stores, which outlives /tmp."""
    asked = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    # Some imports of torch write its default into the environment, as if the user had.
    if asked and not Path(asked).name.startswith("torchinductor_"):
        return Path(asked)
    return ((Path(ours) if ours else cache_dir()) / "inductor").absolute()
