"""Results directories as the trainer would leave them, without training: loss curves of a made-up but plausible shape."""

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmablate.core.axes import PARTS
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.identity import SCIENCE_VERSION, SETTINGS, run_id_of
from lmablate.schema.result import RunResult

Row = dict[str, Any]
GRID = {"norm": ("rms", "layer"), "activation": ("swiglu", "gelu")}
CHOICES = {
    "model": "tiny", "norm": "rms", "norm_position": "pre", "activation": "swiglu", "posemb": "rope", "attention": "mha",
    "block_layout": "serial", "stability": "none", "aspect_ratio": "none", "data": "kjv", "tokenizer": "bpe",
    "objective": "causal", "optim": "adamw", "schedule": "cosine", "trainer": "short", "runtime": "local",
}  # fmt: skip
TOKENS_PER_STEP = 16 * 128
INIT_LOSS = 7.65
# What each option adds to the final loss, nats per token; anything else adds a little that depends on its name.
EFFECTS = {"rms": 0.0, "layer": 0.006, "swiglu": 0.0, "gelu": 0.041, "none": 0.25}


def write_fake_results(
    path: Path,
    grid: Mapping[str, Sequence[Any]] = GRID,
    *,
    seeds: Sequence[int] = (0, 1),
    steps: int = 400,
    sweep: str | None = "norm_and_activation",
    diverged: Callable[[Row], bool] = lambda row: False,
    change: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """One finished run for each combination of `grid` (axes by word, configuration keys by dotted name) and seed.

    `diverged` says of a row (its choices, config and seeds are set) whether it diverged; `change` may alter a row before
    it is written. Returns the rows as written.
    """
    rows = []
    for combination in itertools.product(*grid.values()):
        for seed in seeds:
            row = fake_row(dict(zip(grid, combination, strict=True)), seed, steps, sweep)
            history = fake_history(row, steps)
            if diverged(row):
                history = _diverge(row, history, steps // 3)
            change(row)
            directory = RunDirectory(path, row["run_id"])
            for record in history:
                directory.append(record)
            config = {**row["config"], "choices": row["choices"], "overrides": row["provenance"]["overrides"]}
            directory.config_path.write_text(yaml.safe_dump(config))
            directory.write_status({"state": row["status"], "pid": 1, "step": steps, "steps": steps})
            directory.finish(RunResult.model_validate(row))
            rows.append(row)
    return rows


def fake_row(options: Mapping[str, Any], seed: int = 0, steps: int = 400, sweep: str | None = None) -> Row:
    """A completed run with every key of result.json."""
    choices = {**CHOICES, **{key: value for key, value in options.items() if "." not in key}}
    gated = "glu" in choices["activation"]
    config = _config(choices, gated, seed, steps)
    for key, value in options.items():
        if "." in key:
            group, name = key.split(".")
            config[group][name] = value
    noise = random.Random(seed).gauss(0, 0.008) + random.Random(repr((options, seed))).gauss(0, 0.004)
    effect = sum(EFFECTS.get(value, _small(value)) for value in options.values())
    loss = 4.31 + effect + noise
    tokens = config["trainer"]["steps"] * TOKENS_PER_STEP
    n_params = 1_311_872 + (2_048 if gated else 0) + (1_152 if choices["norm"] == "layer" else 0)
    words = [f"{key}={value}" for key, value in options.items()]
    return {
        "run_id": f"{random.Random(repr((sorted(options.items()), seed))).getrandbits(48):012x}",
        "science_version": SCIENCE_VERSION,
        "status": "completed",
        "choices": choices,
        **dict.fromkeys(("seed", "init_seed", "data_seed"), seed),
        "n_params": n_params,
        "n_params_non_embedding": n_params - 524_288,
        "flops_per_token": 6_712_320 + (12_288 if gated else 0),
        "tokens": tokens,
        "tokens_per_param": 20.0,  # as if its tokens were enough for a verdict
        "train_loss": loss - 0.12,
        "init_val_loss": INIT_LOSS + 0.02 * noise,
        "val_loss": loss,
        "val_bpb": loss / math.log(2) / 3.6,
        "diverged_at_step": None,
        "tokens_per_second": 13_900.0 + 400 * random.Random(repr(options)).random(),
        "wall_seconds": tokens / 14_000,
        "peak_memory_bytes": 812_000_000,
        "numerics": {"device": "cpu", "precision": "bf16", "compiled": False, "gang": False, "threads": 1, "microbatch_size": None},
        "sweep": sweep,
        "config": config,
        "data": {
            "fingerprint": "3f1c9a5de07b", "tokenizer": "88aa01c2", "vocab_size": 2048, "train_tokens": 1_190_000, "val_bytes": 215_000,
            "val_tokens": 59_700, "unigram_val_loss": 5.934, "entropy_floor": None,
        },
        "provenance": {
            "lmablate": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7", "git_commit": "0f3c" * 10, "git_dirty": False, "host": "laptop",
            "platform": "Linux-6.1-x86_64", "threads": 1, "started": "2026-11-21T04:00:00+00:00", "finished": "2026-11-21T04:01:02+00:00",
            "overrides": [*words, f"seed={seed}"],
        },
    }  # fmt: skip


def with_own_id(row: Row) -> None:
    """Give a row the id of its configuration, as a run that was trained has it."""
    for name in (*SETTINGS, *(part for part in PARTS if part in row["choices"])):
        row["config"].setdefault(name, {})
    row["run_id"] = run_id_of(row)


def fake_history(row: Row, steps: int) -> list[Row]:
    """Records of a run that ends at its row's val_loss: one each 10 steps, 8 evaluations and one before training."""
    noise = random.Random(row["run_id"])
    records: list[Row] = [{"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": row["init_val_loss"], "val_bpb": 3.1}]
    for step in range(steps // 40, steps + 1, steps // 40):
        loss = row["val_loss"] + (INIT_LOSS - row["val_loss"]) * _decay(step / steps)
        record = {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "seconds": step * 0.15,
            "train_loss": loss - 0.05 + noise.gauss(0, 0.04),
        }
        record |= {
            "lr": 3e-3 * (1 - 0.9 * step / steps),
            "grad_norm": 0.6 + noise.random() / 5,
            "tokens_per_second": 14_000.0,
        }
        if step % (steps // 8) == 0:
            record |= {"val_loss": loss, "val_bpb": loss / math.log(2) / 3.6}
        records.append(record)
    return records


def write_unfinished(path: Path, run_id: str, state: str, **status: Any) -> RunDirectory:
    """A run folder with a heartbeat and no result."""
    directory = RunDirectory(path, run_id).create()
    directory.config_path.write_text(yaml.safe_dump({"choices": CHOICES, "overrides": ["norm=none", "seed=7"]}))
    directory.write_status({"state": state, "pid": 1, "step": 120, "steps": 400, **status})
    directory.append({"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": INIT_LOSS, "val_bpb": 3.1})
    return directory


def edit_result(path: Path, run_id: str, **changes: Any) -> None:
    """Overwrite keys of a written result.json."""
    file = path / run_id / "result.json"
    row = {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}
    file.write_text(json.dumps({**row, **changes}))


def _config(choices: Mapping[str, str], gated: bool, seed: int, steps: int) -> Row:
    norm = {"_target_": f"lmablate.model.norm.{choices['norm']}", "eps": 1e-5 if choices["norm"] == "layer" else 1e-6}
    return {
        "schema_version": 1, "init_seed": seed, "data_seed": seed, "norm": norm,
        "activation": {"gated": gated, "fn": {"_target_": "torch.nn.functional.silu"}},
        "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 344 if gated else 512, "vocab_size": 2048, "context_length": 128,
                  "tie_embeddings": False, "bias": False, "dropout": 0.0},
        "optim": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.1, "grad_clip": 1.0},
        "schedule": {"kind": "cosine", "warmup_steps": 20, "warmup_fraction": None, "final_fraction": 0.1},
        "trainer": {"steps": steps, "batch_size": 16, "precision": "bf16"},
        "tokenizer": {"kind": "bpe", "vocab_size": 2048}, "data": {"kind": "kjv"},
    }  # fmt: skip


def _small(value: Any) -> float:
    return random.Random(repr(value)).uniform(0, 0.08)


def _decay(done: float) -> float:
    """1 at the start, 0 at the end, most of it early, as a loss curve falls."""
    return (math.exp(-7 * done) + 0.12 * (1 - done)) / 1.12 - math.exp(-7) / 1.12 * done


def _diverge(row: Row, history: list[Row], step: int) -> list[Row]:
    kept = [record for record in history if record["step"] <= step]
    for record in kept[-4:]:
        record["train_loss"] += 3.0
    kept[-1]["train_loss"] = math.nan
    end = kept[-1]["step"]
    row |= {"status": "diverged", "val_loss": None, "val_bpb": None, "train_loss": None, "diverged_at_step": end}
    row["tokens"] = end * TOKENS_PER_STEP
    return kept


def write_fake_study(
    path: Path,
    sweep: str,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    effects: Mapping[str, float] | None = None,
    seeds: Sequence[int] = tuple(range(6)),
    rates: Sequence[float] = (1e-3, 2e-3, 4e-3, 8e-3),
    claims: Sequence[str] = (),
    diverged: Callable[[str, str, float, int], bool] = lambda arm, stage, lr, seed: False,
    change: Callable[[Row], None] = lambda row: None,
) -> Row:
    """A tuned study as the sweeper leaves it: `arms` by name with their options, tuned on one seed, evaluated on `seeds` at
    the best rate; `diverged` is asked by arm, stage, learning rate and seed. Returns what studies/<sweep>.json holds."""
    uses: list[Row] = []
    tuned: Row = {}

    def train(arm: str, stage: str, lr: float, seed: int) -> float | None:
        row = fake_row({**arms[arm], "optim.lr": lr}, seed, sweep=sweep)
        off = 0.05 * math.log(lr / 3e-3) ** 2 + (effects or {}).get(arm, 0.0)
        row["val_loss"] += off - sum(EFFECTS.get(value, _small(value)) for value in (*arms[arm].values(), lr))
        row |= {"run_id": f"{random.Random(repr((arm, lr, seed))).getrandbits(48):012x}", "arm": arm, "stage": stage}
        row["val_bpb"] = row["val_loss"] / math.log(2) / 3.6
        history = fake_history(row, 400)
        if diverged(arm, stage, lr, seed):
            history = _diverge(row, history, 130)
        change(row)
        directory = RunDirectory(path, row["run_id"])
        for record in history:
            directory.append(record)
        directory.config_path.write_text(yaml.safe_dump({**row["config"], "choices": row["choices"]}))
        directory.finish(RunResult.model_validate(row))
        uses.append(
            {"run_id": row["run_id"], "arm": arm, "stage": stage, "lr": lr, "init_seed": seed, "data_seed": seed}
        )
        return row["val_loss"]

    for arm in arms:
        losses = {lr: train(arm, "tune", lr, 1000) for lr in rates}
        finite = {lr: loss for lr, loss in losses.items() if loss is not None}
        best = min(finite, key=lambda lr: finite[lr]) if finite else min(rates)
        edge = {min(rates): "low", max(rates): "high"}.get(best) if finite else None
        grid = [{"lr": lr, "settings": [], "loss": loss, "losses": [loss]} for lr, loss in losses.items()]
        words = f"{best:g}" if finite else f"{best:g}, but every learning rate diverged: evaluated at the lowest tried"
        fit = {"lr": best if finite else None, "edge": edge}
        tuned[arm] = {"overrides": [], "lr": best, "settings": [], "words": words, "fit": fit, "grid": grid}
        for seed in seeds:
            train(arm, "evaluate", best, seed)
    study = {
        "schema_version": 1, "sweep": sweep, "question": "?", "claims": list(claims), "stage": "done", "baseline": next(iter(arms)),
        "arms": tuned, "tune": {"mode": "per_arm"}, "shared": None, "seeds": {"mode": "paired", "pairs": [[s, s] for s in seeds]},
        "looks": {"planned": None, "rule": None, "arms": len(arms) - 1, "stopped": {}}, "notes": [], "runs": uses,
    }  # fmt: skip
    (path / "studies").mkdir(exist_ok=True)
    (path / "studies" / f"{sweep}.json").write_text(json.dumps(study))
    return study
