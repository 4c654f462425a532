"""The sides of the quality benchmark: each trains a model on the same text, at a learning rate and from a seed.

All are measured by `loss_of`: our evaluation, on our validation windows, in fp32.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.shapes import Shape
from lmablate.config import compose
from lmablate.data import TokenData
from lmablate.evaluate import evaluate
from lmablate.model import build_model
from lmablate.model.precision import set_compute_dtype
from lmablate.objective import objective_of
from lmablate.runs.prepared import load_data, prepare_run
from lmablate.schema.run_config import RunConfig
from lmablate.training.trainer import Trainer

TEXT = ("data=sotu", "tokenizer=bpe", "tokenizer.vocab_size=1024")
SHAPE = Shape("quality", 64, 4, 4, context=128, batch=16, vocab=1024, note="a laptop's rung")

# nanoGPT's train.py seeds torch with a number of its own; this adds ours to it, and changes nothing else.
SEEDED = """
import runpy, sys, torch
shift, seed_it = int(sys.argv.pop(1)), torch.manual_seed
torch.manual_seed = lambda seed: seed_it(seed + shift)
runpy.run_path("train.py", run_name="__main__")
"""


class Side:
    """One way to train a model of `shape` for `steps` steps on `data`."""

    title: ClassVar[str]
    tied: ClassVar[bool]
    rates: ClassVar[tuple[float, ...]] = (3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2)  # five, its best among the inner ones

    def __init__(self, shape: Shape, steps: int, data: TokenData) -> None:
        self.shape = replace(shape, vocab=data.vocab_size, tied=self.tied)
        self.steps, self.data = steps, data

    def n_params(self) -> int:
        """The parameters of the model; tied ones count once."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.model(0).parameters())

    def model(self, seed: int) -> nn.Module:
        """A fresh model with the initial weights of this side."""
        raise NotImplementedError

    def settings(self, lr: float, seed: int) -> dict[str, Any]:
        """All that decides the numbers of `train`: equal settings are not trained twice."""
        raise NotImplementedError

    def train(self, lr: float, seed: int) -> nn.Module | None:
        """The trained model; None where it diverged."""
        raise NotImplementedError


class Ours(Side):
    """Our default architecture, under our defaults."""

    title = "lmablate, default"
    tied = False
    words: ClassVar[tuple[str, ...]] = ()

    def config(self, lr: float | str = "rule", seed: int = 0) -> RunConfig:
        sizes = (*self.shape.overrides(), f"trainer.steps={self.steps}", f"optim.lr={lr}", f"seed={seed}")
        cfg = compose([*TEXT, *self.words, *sizes, "runtime.wandb=disabled", "runtime.evaluations=1"])
        return prepare_run(cfg, self.data).cfg

    def model(self, seed: int) -> nn.Module:
        return build_model(self.config(seed=seed))

    def settings(self, lr: float, seed: int) -> dict[str, Any]:
        return {"lr": lr, "seed": seed, "run": prepare_run(self.config(lr, seed), self.data).run_id}

    def train(self, lr: float, seed: int) -> nn.Module | None:
        trainer = Trainer(self.model(seed), self.data, self.config(lr, seed), folder=None)  # type: ignore[arg-type]
        for _ in trainer.records():
            pass
        return trainer.model if trainer.progress.diverged_at_step is None else None


class OursAsGPT2(Ours):
    """GPT-2's architecture as nanoGPT builds it (no biases), under our defaults."""

    title = "lmablate, preset=gpt2 without biases"
    tied = True
    words = ("preset=gpt2", "shrink=tiny", "model.bias=false", "norm.bias=false")


class Llama(Ours):
    """transformers' LlamaForCausalLM with its own initial weights, in our trainer with our recipe and our batches.

    It trains in fp32 throughout, where ours multiplies in bf16.
    """

    title = "transformers Llama in our trainer"
    rates = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    words = ("trainer.precision=fp32", "runtime.compile=false")  # our graphs are of our blocks

    def model(self, seed: int) -> nn.Module:
        d_ff = self.config().model.d_ff
        torch.manual_seed(seed)
        model = peers.Llama.build(self.shape, d_ff)
        return Foreign(model, lambda tokens: model(input_ids=tokens).logits, model.get_input_embeddings())

    def settings(self, lr: float, seed: int) -> dict[str, Any]:
        cfg = self.config(lr, seed)
        recipe = {part: getattr(cfg, part).model_dump() for part in ("optim", "schedule", "trainer")}
        sizes = (self.shape.d_model, self.shape.n_layers, self.shape.n_heads, cfg.model.d_ff, self.shape.context)
        return {
            "lr": lr,
            "seed": seed,
            "sizes": list(sizes),
            "transformers": version("transformers"),
            **recipe,
            **text_of(self.data),
        }


class NanoGPT(Side):
    """nanoGPT's own train.py in a process of its own, at the settings of its README for a CPU but for sizes, steps and rate."""

    title = "nanoGPT, train.py"
    tied = True
    rates = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    checkout: ClassVar[Path]

    @classmethod
    def load(cls, checkout: Path) -> None:
        """Use this checkout, whose model.py also reads the checkpoints."""
        if not (checkout / "train.py").is_file():
            raise SystemExit(f"--nanogpt {checkout}: there is no train.py")
        cls.checkout = checkout
        peers.NanoGPT.load(checkout)

    def model(self, seed: int) -> nn.Module:
        """Its model, whose weights `train` replaces."""
        model = peers.NanoGPT.build(self.shape, 0)
        # its forward gives the logits of every token only where targets are given
        return Foreign(model, lambda tokens: model(tokens, tokens)[0], model.transformer.wte)

    def arguments(self, lr: float) -> list[str]:
        """Those of its README for a CPU. The step that it evaluates and saves at is its last; min_lr is a tenth, as it says."""
        own = {
            "device": "cpu", "compile": False, "dtype": "float32", "eval_iters": 1, "eval_interval": self.steps,
            "always_save_checkpoint": True, "log_interval": 100, "dropout": 0.0, "learning_rate": lr, "min_lr": lr / 10,
            "max_iters": self.steps, "lr_decay_iters": self.steps, "warmup_iters": min(100, self.steps // 10),
            "block_size": self.shape.context, "batch_size": self.shape.batch, "n_layer": self.shape.n_layers,
            "n_head": self.shape.n_heads, "n_embd": self.shape.d_model,
        }  # fmt: skip
        return ["config/train_shakespeare_char.py", *(f"--{key}={value}" for key, value in own.items())]

    def settings(self, lr: float, seed: int) -> dict[str, Any]:
        return {"lr": lr, "seed": seed, "arguments": self.arguments(lr), **text_of(self.data)}

    def train(self, lr: float, seed: int) -> nn.Module | None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_bins(self.data, folder)
            given = [*self.arguments(lr), f"--dataset={folder}", f"--out_dir={folder}"]
            command = [sys.executable, "-c", SEEDED, str(seed), *given]
            own = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=self.checkout, env=own, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"nanoGPT's train.py: exit code {done.returncode}:\n{done.stderr[-2000:]}")
            saved = torch.load(folder / "ckpt.pt", weights_only=True)
        assert saved["iter_num"] == self.steps
        model = self.model(seed)
        model.model.load_state_dict(saved["model"])
        return model


class Foreign(nn.Module):
    """A model of another library where our trainer and our evaluation want one of ours.

    `read` gives its logits ``[B, T, V]``, and `embedding` is its token table. Without a head of ours its loss is that of the logits.
    """

    encoder = None

    def __init__(self, model: nn.Module, read: Callable[[Tensor], Tensor], embedding: nn.Module) -> None:
        super().__init__()
        self.model, self.read, self.embedding = model, read, embedding

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(tokens)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The logits already, which `logits` leaves as they are."""
        return self.read(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


SIDES = {"ours_gpt2": OursAsGPT2, "nanogpt": NanoGPT, "ours": Ours, "llama": Llama}


def load_text() -> TokenData:
    """The text of all sides."""
    return load_data(compose([*TEXT, *SHAPE.overrides()]))


def text_of(data: TokenData) -> dict[str, str]:
    return {"text": data.fingerprint, "tokenizer": data.tokenizer_fingerprint}


def write_bins(data: TokenData, folder: Path) -> None:
    """The text as nanoGPT reads it: train.bin and val.bin, and meta.pkl with the vocabulary."""
    if data.vocab_size > 1 << 16:
        raise SystemExit(f"nanoGPT reads token ids of 16 bits, and the tokenizer has {data.vocab_size:,}")
    for name, tokens in (("train", data.train), ("val", data.val)):
        np.asarray(tokens).astype(np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": data.vocab_size}))


def loss_of(model: nn.Module, side: Side) -> float:
    """Nats per token of our validation windows, by our evaluation, in fp32 on every side."""
    set_compute_dtype(model, None)
    objective = objective_of(compose([*TEXT, *side.shape.overrides()]))
    shape = side.shape
    found = evaluate(
        model,  # type: ignore[arg-type]
        side.data,
        objective,
        context_length=shape.context,
        batch_size=shape.batch,
        device="cpu",
    )
    return found.val_loss
