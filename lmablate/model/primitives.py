"""The few modules that own weights. All other parts are written in terms of them.

Activations are ``[*lead, B, T, D]``: no code here or above assumes how many axes precede the last ones it names. A weight may have one
leading member axis K (training/gang.py). Activations are then ``[K, ..., D]``, member k uses its own weight, and K models of one graph
run as one program. No other part knows this.

A bias is added after the product and a gain after the normalisation, as separate operations: ``F.linear(x, w) + b`` and ``F.linear(x,
w, b)`` round differently, and only the first has a batched counterpart.

Precision is a rule of places, the same for every option and device. Weights are fp32. A matrix multiplies in its compute dtype and
returns it, so that a branch works in that dtype from its first matrix to its last. The residual stream, norms, softmax, routers, logits
and the loss are `exact`: fp32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def exact(x: Tensor) -> Tensor:
    """Return `x` in fp32 if its dtype has fewer bits, else unchanged."""
    return x.float() if x.dtype.itemsize < 4 else x


def per_member(vector: Tensor, x: Tensor) -> Tensor:
    """Return a vector ``[D]`` unchanged, and one with members ``[K, D]`` reshaped to broadcast with ``x = [K, ..., D]``."""
    return vector if vector.ndim == 1 else vector.view(len(vector), *[1] * (x.ndim - 2), -1)


class Gain(nn.Module):
    """``y = x * g`` with one learned factor a channel, starting at 1; x is ``[..., D]``. With `from_one` the weight is ``g - 1`` and
    starts at 0, where floating point is finer (Gemma, Nemotron)."""

    def __init__(self, width: int, *, from_one: bool) -> None:
        super().__init__()
        self.from_one = from_one
        self.weight = nn.Parameter(torch.zeros(width) if from_one else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = per_member(self.weight, x)
        return x * (1 + weight if self.from_one else weight)


class Bias(nn.Module):
    """``y = x + b`` with one learned offset a channel, starting at 0, in the dtype of x ``[..., D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + per_member(self.weight, x).to(x.dtype)


class Matrix(nn.Module):
    """Base class of the modules whose weight ``[rows, columns]`` is drawn at random (see init.py). ``compute_dtype`` is the dtype of the
    product and of its result, None for that of the weight. ``gives_logits``: whether ``model.head_std`` is its scale."""

    gives_logits = False

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.compute_dtype: torch.dtype | None = None

    def product(self, x: Tensor) -> Tensor:
        """Return ``x W^T``: ``[..., columns] -> [..., rows]``."""
        dtype = self.compute_dtype or self.weight.dtype
        return _linear(x.to(dtype), self.weight.to(dtype))


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim == 2:
        return F.linear(x, weight)
    return torch.bmm(x.flatten(1, -2), weight.mT).unflatten(1, x.shape[1:-1])


class Linear(Matrix):
    """``y = x W^T (+ b)``: ``[..., d_in] -> [..., d_out]``."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool) -> None:
        super().__init__(d_out, d_in)
        self.bias = Bias(d_out) if bias else None

    def forward(self, x: Tensor, product: Tensor | None = None) -> Tensor:
        """Apply to x; `product` is ``x W^T`` where it is known (see `apply_all`)."""
        y = self.product(x) if product is None else product
        return y if self.bias is None else self.bias(y)

    def shared(self, x: Tensor) -> Tensor:
        """Apply to an input that all sequences share, such as positions: ``[..., d_in] -> [..., d_out]``. With members the result is
        ``[K, 1, ..., d_out]``, which broadcasts with ``[K, B, ..., d_out]``."""
        return self(x if self.weight.ndim == 2 else x.expand(len(self.weight), 1, *x.shape))


def apply_all(x: Tensor, *layers: Linear) -> list[Tensor]:
    """Return the results of `layers` that read the same input. Their matrices are joined, so that x is cast and read once."""
    if len(layers) == 1 or any(type(layer) is not Linear for layer in layers):
        return [layer(x) for layer in layers]
    dtype = layers[0].compute_dtype or layers[0].weight.dtype
    joint = torch.cat([layer.weight for layer in layers], -2).to(dtype)
    products = _linear(x.to(dtype), joint).split([layer.weight.shape[-2] for layer in layers], -1)
    return [layer(x, product) for layer, product in zip(layers, products, strict=True)]


class Router(Linear):
    """Scores that decide which experts a token uses: a product in fp32 at any precision, with an fp32 result. A small error would send
    a token to another expert (Fedus et al. 2021, arXiv 2101.03961, section 2.4)."""

    def product(self, x: Tensor) -> Tensor:
        return self._each(exact(x), exact(self.weight))

    @staticmethod
    def _each(x: Tensor, weight: Tensor) -> Tensor:
        """Member by member: with so few columns a batched product rounds differently than a single one."""
        if weight.ndim == 2:
            return F.linear(x, weight)
        return torch.stack([F.linear(own, w) for own, w in zip(x, weight, strict=True)])


class Embedding(Matrix):
    """A table of rows: int64 ids ``[...] -> [..., width]``; with members, ids are ``[K, ...]``. The rows are added to the residual
    stream, unless `fan_in` is set: the number of inputs by which the rule of matrices draws them."""

    def __init__(self, n_rows: int, width: int) -> None:
        super().__init__(n_rows, width)
        self.fan_in: int | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return F.embedding(ids, self.weight)
        members, rows, _ = self.weight.shape
        first = torch.arange(members, device=ids.device).view(-1, *[1] * (ids.ndim - 1)) * rows
        return F.embedding(ids + first, self.weight.flatten(0, 1))

    def shared(self, ids: Tensor) -> Tensor:
        """Return the rows of ids that all sequences share, such as positions: ``[...] -> [..., width]``. With members the result is
        ``[K, 1, ..., width]``, which broadcasts with ``[K, B, ..., width]``."""
        if self.weight.ndim == 2:
            return F.embedding(ids, self.weight)
        return self(ids.expand(len(self.weight), 1, *ids.shape))


class Head(nn.Module):
    """Exact logits ``[..., D] -> [..., vocab_size]``; a tied head uses the token table instead of its own matrix."""

    def __init__(self, d_model: int, vocab_size: int, *, tied: bool, bias: bool) -> None:
        super().__init__()
        self.proj = None if tied else Linear(d_model, vocab_size, bias=False)
        if self.proj is not None:
            self.proj.gives_logits = True
        self.bias = Bias(vocab_size) if bias else None

    def forward(self, x: Tensor, table: Embedding) -> Tensor:
        logits = exact(table.product(x) if self.proj is None else self.proj(x))
        return logits if self.bias is None else self.bias(logits)
