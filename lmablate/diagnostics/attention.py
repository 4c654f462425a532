"""The entropy of attention weights, and the largest attention logit.

The scores are intercepted at torch's softmax, so that no attention option needs to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lmablate.diagnostics.module_names import Measurements, branches, layers
from lmablate.model.transformer import TransformerLM

CHUNK_SCORES = 1 << 24  # scores computed at once


@contextmanager
def watching(model: TransformerLM, found: Measurements) -> Iterator[None]:
    """Fill `found` during forward passes of `model`, for each layer with a softmax over keys.

    ``attn/max_logit``: the largest score before the softmax (Wortsman et al. 2023, arXiv 2309.14322, section 3.1), including biases and
    the soft cap. ``attn/entropy``: ``-sum p log p`` in nats, the mean over texts, heads and queries. ``attn/entropy_min``: that of the
    head with the least (Zhai et al. 2023, arXiv 2303.06296). ``max_attention_logit``: the largest of all layers.
    """
    seen = _Scores(found)
    with ExitStack() as hooks:
        for layer, block in layers(model):
            for word, branch in branches(block):
                if word == "attn":
                    hooks.callback(branch.register_forward_pre_hook(seen.entering(f"{layer}/{word}")).remove)
                    hooks.callback(branch.register_forward_hook(seen.leaving).remove)
        hooks.enter_context(seen)
        yield
    if largest := [value for name, value in found.items() if name.endswith("/attn/max_logit")]:
        found["max_attention_logit"] = torch.stack(largest).max()


class _Scores(TorchFunctionMode):
    """Intercepts the scores of fused attention, and of a softmax inside an attention layer."""

    def __init__(self, found: Measurements) -> None:
        super().__init__()
        self.found = found
        self.place: str | None = None

    def entering(self, place: str) -> Any:
        def hook(*_: Any) -> None:
            self.place = place

        return hook

    def leaving(self, *_: Any) -> None:
        self.place = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.place is not None:
            place, self.place = self.place, None  # do not intercept our own softmax
            if func is F.scaled_dot_product_attention:
                self._record(place, _score_chunks(*args, **kwargs))
            elif func in (torch.Tensor.softmax, torch.softmax, F.softmax):
                self._record(place, iter((args[0].detach(),)))
            self.place = place
        return func(*args, **kwargs)

    def _record(self, place: str, chunks: Iterator[Tensor]) -> None:
        """Store the statistics of scores ``[..., H, T, S]``, which are -inf where a query does not look."""
        largest, entropies = [], []
        for scores in chunks:
            log_p = scores.float().log_softmax(-1)
            entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)  # [..., H, T]
            entropies.append(entropy.mean(-1).flatten(0, -2) if entropy.ndim > 2 else entropy.mean(-1)[None])
            largest.append(scores.max().float())
        by_head = torch.cat(entropies).mean(0)
        self.found[f"{place}/max_logit"] = torch.stack(largest).max()
        self.found[f"{place}/entropy"], self.found[f"{place}/entropy_min"] = by_head.mean(), by_head.min()


def _score_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[Tensor]:
    """The scores inside ``scaled_dot_product_attention`` of these arguments, a few texts at a time."""
    q, k = q.detach(), k.detach()
    if enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    length, width = q.shape[-2], k.shape[-2]
    hidden = torch.ones(length, width, dtype=torch.bool, device=q.device).triu(1) if is_causal else None
    if attn_mask is not None:
        attn_mask = attn_mask.detach().expand(*q.shape[:-2], length, width)
    at_once = max(1, CHUNK_SCORES // (q.shape[-3] * length * width))
    for first in range(0, len(q), at_once):
        some = slice(first, first + at_once)
        scores = q[some] @ k[some].mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if hidden is not None:
            scores = scores.masked_fill_(hidden, -torch.inf)
        if attn_mask is not None:
            mask = attn_mask[some]
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        yield scores
