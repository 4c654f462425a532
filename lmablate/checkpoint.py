"""Checkpoints: one safetensors file, whole or absent, with everything that resuming to the bit needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lmablate.files import atomic_write

_NAME = re.compile(r"step-(\d+)\.safetensors")


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """Write the weights, AdamW's moments and `state` (plain JSON) after `step` steps; then drop all but the last `keep`."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim.{key}.{name}"] = value.detach()
    metadata = {"state": json.dumps({**state, "step": step})}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    atomic_write(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata))
    for old in checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path, up_to: int | None = None) -> list[Path]:
    """The checkpoints of a run, newest first; of step `up_to` at most."""
    found = [
        (int(match[1]), path) for path in folder.glob("step-*.safetensors") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for step, path in sorted(found, reverse=True) if up_to is None or step <= up_to]


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, up_to: int | None = None
) -> dict[str, Any] | None:
    """Fill `model` and `optimizer` from the newest readable checkpoint, of step `up_to` at most, and return its state;
    None when there is none."""
    for path in checkpoints(folder, up_to):
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, ValueError):
            os.replace(path, path.with_suffix(".damaged"))
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                moments = {
                    key: tensors[f"optim.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"optim.{key}.{name}" in tensors
                }
                if moments:
                    # fused AdamW keeps its step counter on the parameter's device
                    optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
        return state
    return None


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill `model` from one checkpoint file, for evaluation and sampling."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
