"""Checkpoints: one safetensors file, complete or absent, with all that an exact resume needs."""

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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lmablate.core import access
from lmablate.core.errors import ConfigError
from lmablate.core.files import atomic_write, remove_leftovers
from lmablate.model.plain_torch import own_buffers

log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.(safetensors|shards)")
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """Write weights, user-defined buffers, AdamW's moments and `state` (plain JSON) after `step` steps; keep the last `keep`."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    tensors |= {f"buffer.{name}": buffer.detach() for name, buffer in own_buffers(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim.{key}.{name}"] = value.detach()
    header = json.dumps({**state, "step": step})
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    folder.mkdir(exist_ok=True)  # without parents: a run whose folder was removed must not start another one
    remove_leftovers(folder)
    path = folder / f"step-{step:09d}.safetensors"
    atomic_write(path, save(tensors, {"state": header, "crc32": checksum(tensors, header)}))
    drop_older(folder, keep)
    return path


def drop_older(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, of either kind."""
    for old in newest_first(folder)[keep:]:
        with suppress(OSError):  # a leftover costs disk space only
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def keep_last(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints at the end of a run, if the newest can be read back."""
    found = newest_first(folder)
    if len(found) > keep:
        with suppress(OSError, Damaged):
            read_checkpoint(found[0])
            drop_older(folder, keep)


def checksum(tensors: Mapping[str, torch.Tensor], header: str) -> str:
    """Return the CRC-32 of names, bytes and `header`, without which a flipped bit in a weight would go unnoticed."""
    crc = zlib.crc32(header.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


class Damaged(Exception):
    """The content of a checkpoint is not what was written."""


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the state and the tensors of a file, on the CPU. Raises Damaged, or OSError if it cannot be read at all."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if strange := set(metadata) - {"state", "crc32"}:
            raise Damaged(f"its header has a {min(strange)}")
        state = json.loads(metadata["state"])
        crc = metadata.get("crc32")  # files of early versions have none
        if crc is not None and crc != checksum(tensors, metadata["state"]):
            raise Damaged("its checksum does not fit")
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise Damaged("it does not say its step")
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(str(error)) from None
    return state, tensors


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first: files, or folders of shards (distributed/checkpoint.py). Raises ConfigError for a
    folder without read permission: a run must not start anew next to its own checkpoints."""
    try:
        found = [path for path in access.listed(folder) if _NAME.fullmatch(path.name)]
    except OSError as error:
        raise ConfigError(f"checkpoints: {access.reason(error)}") from None
    return sorted(found, key=lambda path: (-step_of(path), path.suffix))  # for equal steps, the file comes first


def step_of(path: Path) -> int:
    """Return the step of a checkpoint."""
    return int(path.stem.partition("-")[2])


def checkpoints(folder: Path, up_to: int | None = None) -> list[Path]:
    """Return the checkpoints that are one file, newest first, up to step `up_to`."""
    files = (path for path in newest_first(folder) if path.suffix == ".safetensors")
    return [path for path in files if up_to is None or step_of(path) <= up_to]


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, up_to: int | None = None
) -> dict[str, Any] | None:
    """Fill `model` and `optimizer` from the newest readable checkpoint up to step `up_to`; return its state, None without one. Shards
    are joined by this process alone."""
    for path in newest_first(folder):
        if up_to is not None and step_of(path) > up_to:
            continue
        try:
            state, tensors = read_matching(path, model)
        except OSError as error:  # perhaps a temporary failure
            log.warning("%s cannot be read (%s); going back to the checkpoint before", path, error)
            continue
        except Damaged as error:
            quarantine(path, str(error))
            continue
        fill(model, optimizer, tensors)
        return state
    return None


def quarantine(path: Path, why: str) -> None:
    """Rename a damaged checkpoint, so that it is no longer loaded but can be inspected."""
    log.warning("%s is damaged (%s); going back to the checkpoint before", path, why)
    with suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))


def read_matching(path: Path, model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return state and tensors of a checkpoint that fits `model`. Raises Damaged or OSError."""
    if path.suffix == ".shards":
        from lmablate.training.distributed.checkpoint import read_parts

        return read_parts(path, model)
    check_size(path, model)
    state, tensors = read_checkpoint(path)
    wanted: dict[str, torch.Tensor] = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    wanted |= {f"buffer.{name}": buffer for name, buffer in own_buffers(model).items()}
    for key, mine in wanted.items():
        stored = tensors.get(key)
        if stored is None or stored.shape != mine.shape:
            raise Damaged(f"it has no {key.partition('.')[2]} of shape {tuple(mine.shape)}")
    return state, tensors


def fill(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of a checkpoint into weights, buffers and moments."""
    with torch.no_grad():
        for name, buffer in own_buffers(model).items():
            buffer.copy_(tensors[f"buffer.{name}"])
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            moments = {
                key: tensors[f"optim.{key}.{name}"] for key in ("step", *MOMENTS) if f"optim.{key}.{name}" in tensors
            }
            if moments:
                # fused AdamW has its step counter on the parameter's device
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


def check_size(path: Path, model: nn.Module) -> None:
    """Raise Damaged for a file larger than weights and moments of `model` can be, before it is read."""
    held = [*model.parameters(), *own_buffers(model).values()]
    limit = 4 * sum(x.numel() * x.element_size() for x in held) + (64 << 20)
    if (size := path.stat().st_size) > limit:
        raise Damaged(f"it has {size:,} bytes, and a checkpoint of this model {limit:,} at most")


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill `model` from one checkpoint file, for evaluation and sampling. Raises ConfigError for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
            for name, buffer in own_buffers(model).items():
                buffer.copy_(file.get_tensor(f"buffer.{name}"))
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}): train the run again, with --again") from None


def load_parent_weights(folder: Path, model: nn.Module) -> float:
    """Fill `model` with the final weights of its parent run, whose checkpoints are in `folder`.

    Returns the loss that the first run of the line had before training, against which divergence is judged. Raises ConfigError if no
    checkpoint is left or the weights do not fit.
    """
    found = checkpoints(folder)
    if not found:
        raise ConfigError(
            f"{folder}: no checkpoint is left of the run that this one starts from: train it again, with --again"
        )
    load_weights(found[0], model)
    with safe_open(found[0], framework="pt") as file:
        return float(json.loads(file.metadata()["state"])["detector"]["initial_loss"])
