"""Products of rows sorted by expert: torch's grouped matrix product on a GPU, else one product per expert.

Each token's row is copied once per expert it uses. The copies are sorted by expert, stably, so that an expert's rows keep the order of
their tokens, and each expert works on a slice. The way back is a gather, as is its own backward pass, so no sum depends on an order
that could change between runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The order of M rows sorted by expert. Int64 `order` ``[M]`` lists their original indices, and `inverse` ``[M]`` is the inverse
    permutation. `expert` ``[M]`` is ascending, and `counts` ``[G]`` are the rows per expert. Rows beyond them are dropped."""

    order: Tensor
    inverse: Tensor
    expert: Tensor
    counts: Tensor

    @cached_property
    def sizes(self) -> list[int]:
        """Return the counts as numbers, which synchronises with a GPU."""
        return sizes_of(self.counts, len(self.order))


def sort_rows(expert: Tensor, n_experts: int) -> Rows:
    """Sort rows by `expert`, int64 ``[M]``, which is `n_experts` for a dropped row."""
    expert, order = expert.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = order.new_zeros(n_experts + 1).scatter_add_(0, expert, torch.ones_like(expert))
    return Rows(order, inverse, expert, counts[:-1])


def sizes_of(counts: Tensor, n_rows: int) -> list[int]:
    """Return counts as numbers. Tensors without data stand for rows that are spread evenly."""
    n = len(counts)
    if counts.is_meta or type(counts) is not Tensor:
        return [n_rows // n + (i < n_rows % n) for i in range(n)]
    return counts.tolist()


def has_grouped_gemm(x: Tensor, weight: Tensor) -> bool:
    """Return True if torch has one kernel for the products of all experts: bf16 on a GPU of Ampere or later, widths in multiples of 8
    (its 16 bytes of alignment)."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or any(width % 8 for width in weight.shape[1:]):
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)


class _Copies(torch.autograd.Function):
    """``[N, D] -> [N k, D]``, each row k times, in the order of `rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, k: int) -> Tensor:
        ctx.inverse, ctx.k = rows.inverse, k
        return x.index_select(0, rows.order // k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.index_select(0, ctx.inverse).unflatten(0, (-1, ctx.k)).sum(1), None, None


class _WeightedSum(torch.autograd.Function):
    """``out[n] = sum_i w[n, i] y[row of n's choice i]``, summed in the order of choices: ``[N k, D], [N, k] -> [N, D]``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(y, w)
        ctx.rows = rows
        positions = rows.inverse.view(w.shape)
        out = y.index_select(0, positions[:, 0]).mul_(w[:, :1])
        for i in range(1, w.shape[1]):
            out.addcmul_(y.index_select(0, positions[:, i]), w[:, i : i + 1])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, w = ctx.saved_tensors
        rows, k = ctx.rows, w.shape[1]
        each = gradient.index_select(0, rows.order // k)
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (each * y).sum(-1).index_select(0, rows.inverse).view(w.shape)
        return each.mul_(w.flatten().index_select(0, rows.order)[:, None]), dw, None


def product_step(x: Tensor) -> int:
    """Return the number whose multiples row counts are rounded to. oneDNN, which multiplies bf16 on a CPU, compiles a kernel for each
    new row count (2 ms each, ten times the product itself), and an expert's row count changes at every step."""
    return 32 if x.dtype == torch.bfloat16 and x.device.type == "cpu" else 1


def row_slices(sizes: list[int], step: int) -> Iterator[tuple[int, slice]]:
    """Yield each expert with the rows to compute, last expert first.

    A slice may start among the rows of earlier experts, so that its length is a multiple of `step`; what it writes there is overwritten
    later. The rows of the first experts are covered by two overlapping slices.
    """
    end = sum(sizes)
    for e in reversed(range(len(sizes))):
        n = sizes[e]
        longer = -(-n // step) * step
        if n and longer <= end:
            yield e, slice(end - longer, end)
        elif n > step:
            yield e, slice(end - n, end - n % step)
            yield e, slice(end - step, end)
        elif n:
            yield e, slice(end - n, end)
        end -= n


class _Product(torch.autograd.Function):
    """``y[rows of e] = x[rows of e] W[e]^T``: x ``[M, c]``, W ``[G, r, c]``, y ``[M, r]``; dropped rows give zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes = rows.sizes
        y = x.new_empty(len(x), weight.shape[1])
        for e, some in row_slices(sizes, product_step(x)):
            torch.mm(x[some], weight[e].t(), out=y[some])
        y[sum(sizes) :].zero_()
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            for e, some in row_slices(ctx.sizes, product_step(x)):
                torch.mm(gradient[some], weight[e], out=dx[some])
            dx[sum(ctx.sizes) :].zero_()
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weight)
            end = 0
            for e, n in enumerate(ctx.sizes):
                start, end = end, end + n
                _outer(gradient[start:end], x[start:end], dw[e])
        return dx, dw, None


class _GroupedProduct(torch.autograd.Function):
    """`_Product` by ``torch.nn.functional.grouped_mm``, which leaves dropped rows uninitialised and needs no counts on the host."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        ends = rows.counts.cumsum(0).to(torch.int32)
        ctx.save_for_backward(x, weight, ends)
        return _zero_dropped(F.grouped_mm(x, weight.mT, offs=ends), ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        gradient = gradient.contiguous()
        dx = _zero_dropped(F.grouped_mm(gradient, weight, offs=ends), ends) if ctx.needs_input_grad[0] else None
        dw = F.grouped_mm(gradient.mT, x, offs=ends) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def _zero_dropped(rows: Tensor, ends: Tensor) -> Tensor:
    """Set rows that no expert used to zero."""
    met = torch.arange(len(rows), device=rows.device) < ends[-1]
    return torch.where(met[:, None], rows, 0)


def _outer(gradient: Tensor, x: Tensor, out: Tensor) -> None:
    """``out = gradient^T x`` over n rows; those beyond a multiple of the step are added separately."""
    whole = len(x) - len(x) % product_step(x)
    torch.mm(gradient[:whole].t(), x[:whole], out=out)  # of no rows: zeros
    if whole < len(x):
        out.addmm_(gradient[whole:].t(), x[whole:])


def copies(x: Tensor, rows: Rows, k: int) -> Tensor:
    """Return each of the N rows of x k times, sorted: ``[N, D] -> [N k, D]``."""
    return _Copies.apply(x, rows, k)


def weighted_sum(y: Tensor, w: Tensor, rows: Rows) -> Tensor:
    """Return the sum of each token's k results, sorted rows ``[N k, D]``, by their weights ``[N, k]``: ``[N, D]``."""
    return _WeightedSum.apply(y, w, rows)


def grouped_product(x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Multiply sorted rows ``[M, c]`` by the matrix of their expert, ``[G, r, c]``: ``[M, r]``."""
    return (_GroupedProduct if has_grouped_gemm(x, weight) else _Product).apply(x.contiguous(), weight, rows)
