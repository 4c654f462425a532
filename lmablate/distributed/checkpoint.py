"""Checkpoints of a run on several processes, which any number of processes can load, one without torchrun among them.

On the way a checkpoint is a folder, ``step-000000120.shards/``: each process writes its own part with
torch.distributed.checkpoint, as safetensors files (its own format has a pickle), and the first one `state.json` with the
checksums of the parts. The folder gets its name when all of it is there. The last checkpoint of a run is the one file that
checkpoint.py writes, so that every tool reads it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmablate.checkpoint import Damaged, check_size, checkpoints, load_checkpoint, read_checkpoint, save_checkpoint
from lmablate.files import atomic_write

if TYPE_CHECKING:
    from lmablate.distributed.ranks import Ranks

log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.shards")
MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, Any]


def shard_folders(folder: Path) -> list[Path]:
    """The checkpoints in parts, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.shards") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """The step of a checkpoint of either kind."""
    return int(path.stem.partition("-")[2])


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
    """Write a checkpoint in parts; then drop all but the last `keep`."""
    import torch.distributed.checkpoint as dcp

    path = folder / f"step-{step:09d}.shards"
    aside = folder / f".step-{step:09d}.shards.tmp"
    if ranks.first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ranks.wait()
    dcp.save(_tensors(model, optimizer), storage_writer=dcp.HuggingFaceStorageWriter(str(aside), save_distributed=True))
    ranks.wait()
    if ranks.first:
        said = {
            "state": {**state, "step": step},
            "parts": {part.name: _checksum(part) for part in sorted(aside.glob("*.safetensors"))},
            "moments": [name for name, parameter in model.named_parameters() if optimizer.state.get(parameter)],
        }
        atomic_write(aside / "state.json", json.dumps(said))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        _drop_older(folder, keep)
    ranks.wait()


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
        twin: Any = SimpleNamespace(named_parameters=lambda: iter(parameters))
        keeper: Any = SimpleNamespace(state=moments)
        read_checkpoint(save_checkpoint(folder, step, twin, keeper, state, keep=keep))
        for parts in shard_folders(folder):
            shutil.rmtree(parts, ignore_errors=True)
    ranks.wait()


def load_together(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> State | None:
    """Fill `model` and `optimizer` from the newest checkpoint, of either kind, that every process can read."""
    found = json.loads(ranks.say(json.dumps([path.name for path in _newest_first(folder)] if ranks.first else [])))
    for name in found:
        path = folder / name
        try:
            state, tensors = _read(path, model, optimizer, part=ranks.rank, of=ranks.size)
            why = ""
        except (Damaged, OSError) as error:
            why = str(error) or type(error).__name__
        if ranks.all(not why):
            _fill(model, optimizer, tensors)
            return state
        if ranks.first:
            _set_aside(path, why or "another process cannot read it")
        ranks.wait()
    return None


def load_newest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """The same in a single process, without torchrun."""
    for path in shard_folders(folder):
        if any(step_of(whole) >= step_of(path) for whole in checkpoints(folder)):
            break
        try:
            state, tensors = _read(path, model, optimizer, part=0, of=1)
        except (Damaged, OSError) as error:
            _set_aside(path, str(error))
            continue
        _fill(model, optimizer, tensors)
        return state
    return load_checkpoint(folder, model, optimizer)


def _newest_first(folder: Path) -> list[Path]:
    return sorted([*checkpoints(folder), *shard_folders(folder)], key=step_of, reverse=True)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments under the names of checkpoint.py. AdamW's own step is the same for all, and stands once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        held = optimizer.state.get(parameter, {})
        tensors |= {f"optim.{key}.{name}": held[key].detach() for key in MOMENTS if key in held}
        if "step" in held:
            tensors["optim.step"] = held["step"].detach().cpu()
    return tensors


def _read(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, part: int, of: int
) -> tuple[State, dict[str, Tensor]]:
    """State and tensors of a checkpoint, cut as `model` is. Nothing of the model is touched. Raises Damaged or OSError."""
    if path.suffix == ".safetensors":
        check_size(path, model)
        state, tensors = read_checkpoint(path)
        for name, parameter in model.named_parameters():
            there = tensors.get(f"model.{name}")
            if there is None or there.shape != parameter.shape:
                raise Damaged(f"it has no {name} of shape {tuple(parameter.shape)}")
        return state, _cut_alike(tensors, model)
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        said = json.loads((path / "state.json").read_bytes())
        state, parts, moved = said["state"], said["parts"], set(said["moments"])
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
        dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    except (Damaged, OSError):
        raise
    # Of many kinds: a key missing, a shape that differs, a header that is none; torch's own is no Exception.
    except (Exception, CheckpointException) as error:
        raise Damaged(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__) from None
    for name in moved:
        wanted[f"optim.step.{name}"] = wanted["optim.step"].clone()
    return state, wanted


def _fill(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            held = {
                key: tensors[f"optim.{key}.{name}"] for key in ("step", *MOMENTS) if f"optim.{key}.{name}" in tensors
            }
            if held:
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in held.items()}


def _cut_alike(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors as the parameters of `model` are: FSDP2 holds a part of each in this process."""
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
    """All of a tensor of which every process may hold a part."""
    gather = getattr(value, "full_tensor", None)
    return value.detach() if gather is None else gather().detach()


def _checksum(path: Path) -> str:
    """CRC-32 of a file, and its length."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return f"{crc:08x}-{size}"


def _set_aside(path: Path, why: str) -> None:
    log.warning("%s is damaged (%s); going back to the checkpoint before", path, why)
    with suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))


def _drop_older(folder: Path, keep: int) -> None:
    for old in _newest_first(folder)[keep:]:
        with suppress(OSError):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
