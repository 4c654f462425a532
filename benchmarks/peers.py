"""The other libraries, each at the same shape, on the same rows, with the same fused AdamW and clipping.

Every model is built as its library documents, dropout 0, caches off. Losses are the library's plain ones: logits, then
cross entropy. Precision and compilation are those of the row.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.shapes import Shape, Tokens, solve_width

RECIPE: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


class NotInstalled(Exception):
    """A peer that this environment lacks."""


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotInstalled(package)


class Peer:
    """A model of another library in the loop that its users write."""

    package: ClassVar[str]
    swiglu: ClassVar[bool] = True  # the shape of the FFN: three matrices, or two

    def __init__(self, shape: Shape, tokens: Tokens, target: int, *, precision: str, compiled: bool) -> None:
        _needs(self.package)
        self.shape, self.tokens, self.precision = shape, tokens, precision
        width = self.solve(shape, target)
        torch.manual_seed(0)
        self.model = self.build(shape, width).to(shape.device).train()
        self.n_params = sum(p.numel() for p in self.model.parameters())
        self.width = width
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True, **RECIPE)
        self.forward: Callable[..., Any] = torch.compile(self.model) if compiled else self.model

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def solve(cls, shape: Shape, target: int) -> int:
        """The FFN width that gives `target` parameters."""

        def count(width: int) -> int:
            with torch.device("meta"):
                return sum(p.numel() for p in cls.build(shape, width).parameters())

        return solve_width(target, count, guess=shape.d_model * 8 // 3 if cls.swiglu else shape.d_model * 4)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.forward(ids)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.shape.device, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def rows(self, number: int) -> torch.Tensor:
        s = self.shape
        rows = torch.from_numpy(self.tokens.batch(number, data_seed=0, batch_size=s.batch, context_length=s.context))
        return rows if s.device == "cpu" else rows.pin_memory().to(s.device, non_blocking=True)

    def step(self, number: int) -> None:
        rows = self.rows(number)
        with self.autocast():
            logits = self.logits(rows[:, :-1].contiguous())
            loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.shape.device == "cpu":
            loss.item()


class Llama(Peer):
    """transformers' LlamaForCausalLM: the architecture of our defaults."""

    package = "transformers"

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocab,
                hidden_size=shape.d_model,
                intermediate_size=width,
                num_hidden_layers=shape.n_layers,
                num_attention_heads=shape.n_heads,
                num_key_value_heads=shape.n_heads,
                max_position_embeddings=shape.context,
                tie_word_embeddings=shape.tied,
                use_cache=False,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.forward(input_ids=ids).logits


class GPT2(Llama):
    """transformers' GPT2LMHeadModel."""

    swiglu = False

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocab,
                n_positions=shape.context,
                n_embd=shape.d_model,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                n_inner=width,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=shape.tied,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


class XTransformers(Peer):
    """x-transformers with its documented Llama recipe: RMSNorm, rotary positions, SwiGLU, flash attention, no biases."""

    package = "x_transformers"

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        from loguru import logger
        from x_transformers import Decoder, TransformerWrapper

        logger.disable("x_transformers")  # a warning for every model with heads below 32 channels
        return TransformerWrapper(
            num_tokens=shape.vocab,
            max_seq_len=shape.context,
            use_abs_pos_emb=False,
            tie_embedding=shape.tied,
            attn_layers=Decoder(
                dim=shape.d_model,
                depth=shape.n_layers,
                heads=shape.n_heads,
                attn_dim_head=shape.d_model // shape.n_heads,
                attn_flash=True,
                use_rmsnorm=True,
                rotary_pos_emb=True,
                ff_mult=width / shape.d_model,
                ff_glu=True,
                ff_swish=True,
                ff_no_bias=True,
            ),
        )


class LitGPT(Peer):
    """litgpt's GPT with its Llama settings."""

    package = "litgpt"

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        from litgpt.config import Config
        from litgpt.model import GPT

        model = GPT(
            Config(
                block_size=shape.context,
                n_layer=shape.n_layers,
                n_embd=shape.d_model,
                n_head=shape.n_heads,
                vocab_size=shape.vocab,
                padded_vocab_size=shape.vocab,
                rotary_percentage=1.0,
                parallel_residual=False,
                bias=False,
                norm_class_name="RMSNorm",
                mlp_class_name="LLaMAMLP",
                intermediate_size=width,
            )
        )
        if shape.tied:
            model.lm_head.weight = model.transformer.wte.weight
        return model


class NanoGPT(Peer):
    """nanoGPT's model.py, imported from a checkout. Its FFN is four times the width; its head is untied where that comes
    nearer our parameters."""

    package = "torch"
    swiglu = False
    source: ClassVar[types.ModuleType | None] = None

    @classmethod
    def load(cls, checkout: Path) -> None:
        spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
        if spec is None or spec.loader is None or not (checkout / "model.py").is_file():
            raise SystemExit(f"--nanogpt {checkout}: there is no model.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module  # its dataclass looks itself up there
        spec.loader.exec_module(module)
        cls.source = module

    @classmethod
    def build(cls, shape: Shape, width: int) -> nn.Module:
        if cls.source is None:
            raise NotInstalled("nanoGPT")
        sizes = {"n_layer": shape.n_layers, "n_head": shape.n_heads, "n_embd": shape.d_model}
        with contextlib.redirect_stdout(None):
            model = cls.source.GPT(
                cls.source.GPTConfig(block_size=shape.context, vocab_size=shape.vocab, bias=False, dropout=0.0, **sizes)
            )
        if width:
            model.transformer.wte.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    @classmethod
    def solve(cls, shape: Shape, target: int) -> int:
        """1 for an untied head, 0 for its own tied one."""

        def miss(untied: int) -> float:
            with torch.device("meta"):
                total = sum(p.numel() for p in cls.build(shape, untied).parameters())
            return abs(math.log(total / target))

        return min((0, 1), key=miss)

    def step(self, number: int) -> None:
        rows = self.rows(number)
        with self.autocast():  # its forward computes the loss itself, and its view() wants contiguous targets
            _, loss = self.forward(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.shape.device == "cpu":
            loss.item()
