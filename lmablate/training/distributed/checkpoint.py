"""Checkpoints of a run on several processes, which any number of processes can load, also one without torchrun.

During training a checkpoint is a folder, ``step-000000120.shards/``. Each process writes its own shard with
torch.distributed.checkpoint as a safetensors file (its default format contains a pickle). The first process writes `state.json` with
the checksums of the shards. The folder gets its name once it is complete. The last checkpoint of a run is the single file of
training/checkpoint.py, so that every tool reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmablate.core.files import atomic_write, read_bounded
from lmablate.training.checkpoint import (
    MOMENTS,
    Damaged,
    drop_older,
    fill,
    newest_first,
    quarantine,
    read_checkpoint,
    read_matching,
    save_checkpoint,
)

if TYPE_CHECKING:
    from lmablate.training.distributed.ranks import Ranks

MAX_BYTES = 64 << 20  # of a state.json
State = dict[str, Any]


def shard_folders(folder: Path) -> list[Path]:
    """Return the sharded checkpoints, newest first."""
    return [path for path in newest_first(folder) if path.suffix == ".shards"]


def save_together(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    ranks: Ranks,
    *,
    keep: int,
) -> None:
    """Write a sharded checkpoint; then delete all but the last `keep`."""
    import torch.distributed.checkpoint as dcp

    path = folder / f"step-{step:09d}.shards"
    aside = folder / f".step-{step:09d}.shards.tmp"
    if ranks.first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ranks.barrier()
    dcp.save(_tensors(model, optimizer), storage_writer=dcp.HuggingFaceStorageWriter(str(aside), save_distributed=True))
    ranks.barrier()
    if ranks.first:
        header = {
            "state": {**state, "step": step},
            "parts": {part.name: _checksum(part) for part in sorted(aside.glob("*.safetensors"))},
            "moments": [name for name, parameter in model.named_parameters() if optimizer.state.get(parameter)],
        }
        atomic_write(aside / "state.json", json.dumps(header))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        drop_older(folder, keep)
    ranks.barrier()


def save_whole(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    ranks: Ranks,
    *,
    keep: int,
) -> None:
    """Gather a checkpoint in the first process, which writes it as one file."""
    whole: dict[str, dict[str, Tensor]] = {"weight": {}, "step": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, parameter in model.named_parameters():
        named = {"weight": parameter.detach(), **optimizer.state.get(parameter, {})}
        for key, value in named.items():
            full = _full(value)
            if ranks.first:
                whole[key][name] = full.cpu()
    if ranks.first:
        parameters = [(name, nn.Parameter(value)) for name, value in whole["weight"].items()]
        moments = {
            parameter: {key: whole[key][name] for key in ("step", *MOMENTS) if name in whole[key]}
            for name, parameter in parameters
        }
        # User-defined parts with buffers train in one process (distributed.check).
        twin: Any = SimpleNamespace(named_parameters=lambda: iter(parameters), named_modules=lambda: iter(()))
        keeper: Any = SimpleNamespace(state=moments)
        read_checkpoint(save_checkpoint(folder, step, twin, keeper, state, keep=keep))
        for parts in shard_folders(folder):
            shutil.rmtree(parts, ignore_errors=True)
    ranks.barrier()


def load_together(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> State | None:
    """Fill `model` and `optimizer` from the newest checkpoint, of either kind, that every process can read; return its state. One
    process without torchrun calls checkpoint.load_checkpoint."""
    names = json.loads(ranks.broadcast(json.dumps([path.name for path in newest_first(folder)] if ranks.first else [])))
    for name in names:
        path = folder / name
        try:
            if path.suffix == ".shards":
                state, tensors = read_parts(path, model, part=ranks.rank, of=ranks.size)
            else:
                state, whole = read_matching(path, model)
                tensors = _cut_alike(whole, model)
            why = ""
        except (Damaged, OSError) as error:
            why = str(error) or type(error).__name__
        if ranks.all(not why):
            fill(model, optimizer, tensors)
            return state
        if ranks.first:
            quarantine(path, why or "another process cannot read it")
        ranks.barrier()
    return None


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments under the names of training/checkpoint.py. AdamW's step counter is the same for all and stored once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        held = optimizer.state.get(parameter, {})
        tensors |= {f"optim.{key}.{name}": held[key].detach() for key in MOMENTS if key in held}
        if "step" in held:
            tensors["optim.step"] = held["step"].detach().cpu()
    return tensors


def read_parts(path: Path, model: nn.Module, *, part: int = 0, of: int = 1) -> tuple[State, dict[str, Tensor]]:
    """Return state and tensors of a sharded checkpoint, sharded like `model`, which is not changed. Process `part` of `of` checks its
    share of the checksums. Raises Damaged or OSError."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        header = json.loads(read_bounded(path / "state.json", MAX_BYTES))
        state, parts, moved = header["state"], header["parts"], set(header["moments"])
        for name in sorted(parts)[part::of]:
            if Path(name).name != name or _checksum(path / name) != parts[name]:
                raise Damaged(f"the checksum of its part {name} does not fit")
        wanted = {f"model.{name}": torch.empty_like(p.detach()) for name, p in model.named_parameters()}
        for key in MOMENTS:
            held = ((name, p.detach()) for name, p in model.named_parameters() if name in moved)
            wanted |= {f"optim.{key}.{name}": torch.empty_like(p) for name, p in held}
        if moved:
            wanted["optim.step"] = torch.zeros(())
        reader = dcp.HuggingFaceStorageReader(str(path))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled"
            )  # one process joins the shards, which is intended
            dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    except (FileNotFoundError, NotADirectoryError) as error:  # a folder gets its name only once it is complete
        raise Damaged(str(error)) from None
    except (Damaged, OSError):
        raise
    # Many kinds: a missing key, another shape, a broken header; torch's own error is not a subclass of Exception.
    except (Exception, CheckpointException) as error:
        raise Damaged(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__) from None
    for name in moved:
        wanted[f"optim.step.{name}"] = wanted["optim.step"].clone()
    return state, wanted


def _cut_alike(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Shard whole tensors like the parameters of `model`: FSDP2 has a part of each in this process."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    cut = dict(tensors)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            for key in (f"model.{name}", *(f"optim.{moment}.{name}" for moment in MOMENTS)):
                if key in tensors:
                    value = tensors[key].to(parameter.device)
                    cut[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return cut


def _full(value: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    gather = getattr(value, "full_tensor", None)
    return value.detach() if gather is None else gather().detach()


def _checksum(path: Path) -> str:
    """CRC-32 and length of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return f"{crc:08x}-{size}"
