"""torch.compile: how, and whether it pays.

A model is compiled block by block, so that a deeper one reuses its graph, with fixed shapes, so that a graph computes the
same numbers whatever was compiled before it. Evaluation stays eager: its graphs would be compiled for a few passes only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.access import there
from lmablate.identity import SCIENCE_VERSION
from lmablate.machine import matmul_rates
from lmablate.paths import cache_dir

if TYPE_CHECKING:
    from lmablate.config.schema import RunConfig
    from lmablate.jobs import Job
    from lmablate.model.transformer import TransformerLM

log = logging.getLogger(__name__)

# Measured on one core of an AMD EPYC with AVX512-BF16, at widths 32 to 384; see docs/benchmarks.md.
COMPILE_SECONDS = 30.0  # to compile a graph for the first time
WARM_SECONDS = 4.0  # when the compiler finds what an earlier process has built
GAIN = 1.15  # a compiled step over an eager one: 1.05 to 1.4 were seen
EFFICIENCY = {"fp32": 0.5, "bf16": 0.2}  # of an eager step's products, of the matmul peak
LAYER_SECONDS = 1.5e-3  # of a step's own cost, whatever its size


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


def eager(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which a compiled model runs as it was written."""
    if not compiled:
        return contextlib.nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")


def missing_compiler(device: str) -> str | None:
    """Why nothing can be compiled here, if so: torch.compile needs a C++ compiler on CPUs."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device == "cpu" and not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({' or '.join(names)}) is installed"
    return None


def resolve_compile(jobs: Sequence[Job], slots: int) -> None:
    """Decide ``runtime.compile=auto`` for the jobs of a sweep, all alike: compiled and eager rows cannot be paired.

    What finished rows of these jobs did is done again. Otherwise it is compiled if that saves more seconds than it costs,
    by what is known of each before anything runs: the FLOPs of the jobs, how fast this machine multiplies matrices, and
    whether their graphs were compiled here before.
    """
    open_ = [job for job in jobs if job.cfg.runtime.compile == "auto"]
    if not open_:
        return
    chosen, why = _follow(open_) or _weigh(open_, slots)
    left = [job for job in open_ if not job.done]
    if left:
        log.info("runtime.compile=auto: %s (%s)", "compiled" if chosen else "eager", why)
    for job in open_:
        runtime = job.cfg.runtime.model_copy(update={"compile": chosen})
        job.cfg = job.cfg.model_copy(update={"runtime": runtime})


def _follow(jobs: Sequence[Job]) -> tuple[bool, str] | None:
    """What the finished and the begun of these jobs did, by their majority."""
    did: Counter[bool] = Counter()
    for job in jobs:
        if (row := job.directory.read_result()) is not None:
            if row.get("science_version") == SCIENCE_VERSION:
                did[bool(row.get("numerics", {}).get("compiled"))] += 1
        elif (begun := _begun(job)) is not None:
            did[begun] += 1
    if not did:
        return None
    return did.most_common(1)[0][0], "as in the runs of this sweep that were trained before"


def _begun(job: Job) -> bool | None:
    """What an unfinished run with a checkpoint was told."""
    from lmablate.run import read_config

    if not there(job.directory.checkpoint_dir):
        return None
    with contextlib.suppress(Exception):  # unreadable: the run itself will say so
        told = read_config(job.directory.config_path).runtime.compile
        return told if isinstance(told, bool) else None
    return None


def _weigh(jobs: Sequence[Job], slots: int) -> tuple[bool, str]:
    device = jobs[0].cfg.runtime.device
    if (why := missing_compiler(device)) is not None:
        return False, why
    if device != "cpu":
        return False, "on a GPU ask for it with runtime.compile=true"
    graphs = {graph_of(job.cfg): job.cfg for job in jobs if not job.done}
    cost = sum(WARM_SECONDS if there(_stamp(cfg)) else COMPILE_SECONDS for cfg in graphs.values())
    train = sum(seconds(job.cfg) for job in jobs if not job.done)
    saved = train * (1 - 1 / GAIN)
    busy = max(1, min(slots, len(jobs)))
    return saved > cost, (
        f"about {train / busy:,.0f} s of training would be some {saved / busy:,.0f} s shorter, "
        f"and compiling {len(graphs)} graph{'s' * (len(graphs) > 1)} takes {cost / busy:,.0f} s"
    )


def graph_of(cfg: RunConfig) -> str:
    """Runs with equal answers compile the same graph, whatever text they read."""
    from lmablate.gang import FUSIBLE_KEYS
    from lmablate.identity import GRAPH

    told = cfg.model_dump(include=set(GRAPH))
    for group, names in FUSIBLE_KEYS.items():
        told[group] = {name: value for name, value in told[group].items() if name not in names}
    return json.dumps([told, cfg.runtime.microbatch_size], sort_keys=True, default=str)


def _stamp(cfg: RunConfig) -> Path:
    """A file that stands once a run's graph has been compiled with this machine's compiler cache."""
    import torch

    name = hashlib.sha256(f"{torch.__version__}|{graph_of(cfg)}".encode()).hexdigest()[:16]
    return compile_cache(cfg.runtime.cache_dir) / "lmablate" / name


def remember(cfg: RunConfig) -> None:
    """Note that a run's graph has been compiled."""
    with contextlib.suppress(OSError):
        path = _stamp(cfg)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def compile_cache(ours: str | None) -> Path:
    """The user's folder for compiled graphs, else one beside the token stores, which outlives /tmp."""
    asked = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    # Some imports of torch write its default into the environment, as if the user had.
    if asked and not Path(asked).name.startswith("torchinductor_"):
        return Path(asked)
    return ((Path(ours) if ours else cache_dir()) / "inductor").absolute()


def seconds(cfg: RunConfig) -> float:
    """A rough guess, without running anything, at how long a run's eager steps take on this machine's CPU."""
    from lmablate.budget import flops_per_token

    folder = Path(cfg.runtime.cache_dir) if cfg.runtime.cache_dir else None
    precision = cfg.trainer.precision
    rate = EFFICIENCY[precision] * matmul_rates(folder)[precision]
    step = flops_per_token(cfg) * cfg.tokens_per_step / rate + cfg.model.n_layers * LAYER_SECONDS
    return cfg.trainer.steps * step
