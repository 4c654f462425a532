"""Export a trained run as a folder that transformers loads, with its tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmablate.core.errors import ConfigError
from lmablate.data import TokenData
from lmablate.data.hub_client import hub_answers, why_offline
from lmablate.interop.hf_models import ExportModel, models_of, special_tokens
from lmablate.interop.saved import library
from lmablate.interop.tokenizer import as_hf
from lmablate.runs.load import load_run
from lmablate.runs.run_directory import RunDirectory, check_writable
from lmablate.schema.run_config import RunConfig

MARK = "lmablate.json"  # marks a folder as an export, with the run it is from
NEAR = 1e-3  # of the largest logit: the tolerance between two exact programs in fp32


class Exported(NamedTuple):
    """The folder of an export, its class (of ELECTRA two), and the largest difference of logits, relative to the largest."""

    folder: Path
    architecture: str
    difference: float


def export_run(run_dir: str | Path, out: str | Path) -> Exported:
    """Write the run of `run_dir` to the folder `out`, for its transformers class and ``AutoTokenizer``.

    ELECTRA is two folders in one, ``generator`` and ``discriminator``. `out` must not exist, be empty, or hold an earlier export,
    which is replaced. The folder is loaded and compared with the run before it appears under its name. Raises ConfigError for a
    run that no class expresses.
    """
    run_dir, out = Path(run_dir), Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file()):
        raise ConfigError(f"--out {out} exists and is no earlier export: choose another folder, or move it away")
    model, cfg, data = load_run(run_dir)
    models = models_of(model, cfg, data)
    special = special_tokens(cfg)
    tokenizer = as_hf(data.tokenizer, cfg.model.context_length, special)
    check_writable(out.absolute().parent, "--out")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "model"
        for exported in models:
            _save(exported.theirs, folder / exported.subfolder)
            tokenizer.save_pretrained(folder / exported.subfolder)
        difference = max(_compare(folder / exported.subfolder, exported) for exported in models)
        for exported in models:
            _same_tokens(folder / exported.subfolder, cfg, data)
        metadata = _metadata(run_dir, cfg, models)
        (folder / MARK).write_text(json.dumps(metadata, indent=1) + "\n")
        (folder / "README.md").write_text(_card(metadata, models, list(special.new.values())))
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(folder, out)
    return Exported(out, metadata["architecture"], difference)


def _save(theirs: Any, folder: Path) -> None:
    """Save a model, with the experts' implementation if only one works (convert.ROW), which transformers reads but does not write."""
    theirs.save_pretrained(folder)
    if (how := getattr(theirs.config, "_experts_implementation", None)) == "eager":
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"experts_implementation": how}, indent=2) + "\n")


def _compare(folder: Path, model: ExportModel) -> float:
    """Return the largest difference between the loaded folder and the run on one window, relative to the largest logit."""
    import torch

    loaded = getattr(library(), model.loads.auto).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = loaded(**model.inputs).logits
        difference = float((logits - model.expected).abs().max() / model.expected.abs().max())
    if not difference < NEAR:  # a nan is not small either
        raise ConfigError(
            f"the exported {type(loaded).__name__} gives other logits than the run (by {difference:.1e} of the largest): "
            f"transformers {library().__version__} may compute this class otherwise; nothing was written"
        )
    return difference


def _same_tokens(folder: Path, cfg: RunConfig, data: TokenData) -> None:
    """Raise ConfigError if the folder's tokenizer reads the validation text differently from the run's."""
    first = data.val[: cfg.model.context_length].tolist()
    ends = first.index(data.eot_id) if data.eot_id in first else len(first)
    text = data.decode(first[:ends])
    tokenizer = library().AutoTokenizer.from_pretrained(folder)
    if (got := tokenizer(text)["input_ids"]) != (wanted := data.encode(text)):
        at = next(
            (i for i, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]),
            min(len(got), len(wanted)),
        )
        raise ConfigError(
            f"the exported tokenizer reads the validation text otherwise from token {at} on ({got[at : at + 5]} for "
            f"{wanted[at : at + 5]}): transformers {library().__version__} may rebuild it; nothing was written"
        )


def _metadata(run_dir: Path, cfg: RunConfig, models: Sequence[ExportModel]) -> dict[str, Any]:
    row = RunDirectory.at(run_dir).read_result()
    kept = ("run_id", "science_version", "status", "seed", "tokens", "n_params", "val_loss", "val_bpb")
    axes = {axis: option for axis, option in cfg.choices.items() if option != "none"}
    metadata = {"run_id": run_dir.absolute().name} | ({key: row[key] for key in kept} if row is not None else {})
    private = ("results_dir=", "runtime.", "data.paths=", "tokenizer.path=")  # paths on the training machine
    overrides = [override for override in cfg.overrides if not override.lstrip("+").startswith(private)]
    names = [type(model.theirs).__name__ for model in models]
    return {**metadata, "architecture": " and ".join(names), "choices": axes, "command": overrides}


def _card(metadata: dict[str, Any], models: Sequence[ExportModel], special: Sequence[str]) -> str:
    """Return a short model card."""
    measured = [f"{key} {metadata[key]:.4f}" for key in ("val_loss", "val_bpb") if isinstance(metadata.get(key), float)]
    command = " ".join(["lmablate train", *metadata["command"]])
    task = f"pipeline_tag: {models[0].loads.task}\n" if models[0].loads.task and len(models) == 1 else ""
    loads = [
        f"`{model.loads.auto}`" + (f" (folder `{model.subfolder}`)" if model.subfolder else "") for model in models
    ]
    shown = f"{special[-1]} to {special[0]}" if len(special) > 1 else "".join(special)
    reads = (
        f" Its tokenizer reads `{shown}` as text, and as a token with `split_special_tokens=False`." if shown else ""
    )
    return (
        f"---\nlibrary_name: transformers\n{task}tags: [lmablate]\n---\n# {metadata['run_id']}\n\n"
        f"A language model trained by lmablate, as `{metadata['architecture']}`"
        f"{': ' + ', '.join(measured) if measured else ''}.\nLoad it with {' and '.join(loads)}.{reads}\n\n```\n{command}\n```\n"
    )


def check_name(name: str) -> None:
    """Raise ConfigError for an invalid name of a model on the Hub."""
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"--push {name}: give the name as user/model")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub as `name`. Return its URL. Raises ConfigError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if not hub_answers():
        raise ConfigError(f"--push {name}: {why_offline()}; the folder {folder} is written and can be pushed later")
    try:
        api = HfApi()
        api.whoami()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message="lmablate export")
    except LocalTokenNotFoundError:
        raise ConfigError(f"--push {name}: nobody is logged in: hf auth login, or set HF_TOKEN") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(f"--push {name}: the Hub refused: {str(error).splitlines()[0]}") from error
    return f"https://huggingface.co/{name}"
