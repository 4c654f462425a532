"""Tokens sampled from a model, one after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.decoding.decoder import Decoder
from lmablate.model.transformer import TransformerLM


@dataclass(frozen=True)
class Sampling:
    """The sampling of the next token from its logits.

    `temperature` divides them; 0 takes the likeliest token. `top_k` keeps the k likeliest. `top_p` keeps the likeliest ones whose
    probabilities, after `top_k` and at this temperature, together reach it (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751,
    section 3.1). None keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"--temperature {self.temperature:g}: must be 0 (the likeliest token each time) or above, e.g. 0.8"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k {self.top_k}: must keep at least one token; leave it out to keep all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p:g}: must be above 0 and at most 1; leave it out to keep all")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ConfigError(
                "--temperature 0 takes the likeliest token each time, and --top-k and --top-p have no effect: leave them out"
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sampling probabilities ``[B, vocab_size]`` of `logits`, in float64."""
        scaled = logits.double()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(scaled.argmax(-1), scaled.shape[-1]).double()
        scaled = scaled / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            likeliest = torch.zeros_like(scaled, dtype=torch.bool).scatter_(-1, scaled.topk(self.top_k).indices, True)
            scaled = scaled.masked_fill(~likeliest, -torch.inf)
        chances = scaled.softmax(-1)
        if self.top_p is not None:
            ordered, order = chances.sort(dim=-1, descending=True, stable=True)
            enough_before = ordered.cumsum(-1) - ordered >= self.top_p
            chances = chances.masked_fill(torch.zeros_like(enough_before).scatter_(-1, order, enough_before), 0.0)
        return chances / chances.sum(-1, keepdim=True)


def generate(
    model: TransformerLM,
    prompt: Tensor,
    n_tokens: int,
    sampling: Sampling,
    *,
    seed: int = 0,
    end: int | None = None,
    prefix: int | None = None,
) -> Tensor:
    """Continue int64 prompts of one length ``[B, T]`` by up to `n_tokens` tokens.

    Row i draws from `seed` and i alone, so that it is the same in a batch of any size. A row that has drawn `end` continues with `end`,
    and all stop when every row has. `prefix` tokens of the prompt read each other in both directions.
    """
    batch, length = prompt.shape
    decoder = Decoder(model, batch, length + n_tokens)
    streams = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(i,)))) for i in range(batch)
    ]
    done = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    chunks = [prompt]
    for number in range(n_tokens):
        logits = decoder.next_logits(chunks[-1], prefix if number == 0 else None)
        token = _sample(sampling.probabilities(logits), streams).masked_fill(done, 0 if end is None else end)
        chunks.append(token[:, None])
        if end is not None:
            done |= token == end
            if done.all():
                break
    return torch.cat(chunks, -1)


def _sample(chances: Tensor, streams: list[np.random.Generator]) -> Tensor:
    """One token per row, where a uniform number of its stream falls among the probabilities."""
    uniform = torch.tensor([stream.random() for stream in streams], dtype=chances.dtype, device=chances.device)
    heights = chances.cumsum(-1)
    found = torch.searchsorted(heights, (uniform * heights[:, -1])[:, None], right=True)[:, 0]
    last = (
        chances.shape[-1] - 1 - (chances.flip(-1) > 0).int().argmax(-1)
    )  # rounding must not pick a token of probability 0
    return torch.minimum(found, last)
