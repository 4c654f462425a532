"""The mean of a difference over tokens, with an interval that accounts for the correlation of tokens of one text."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

DOCUMENTS = 30  # the least number of documents that serve as clusters; fewer are cut into blocks
BLOCKS = 100  # about the number of blocks into which few documents are cut


class Mean(NamedTuple):
    """A mean over `tokens` tokens of `clusters` clusters, in the unit of the values.

    `se` is clustered; `naive_se` assumes independent tokens; `low` and `high` are the 95 % interval. All are None for one cluster.
    """

    tokens: int
    clusters: int
    mean: float
    se: float | None
    naive_se: float | None
    low: float | None
    high: float | None


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> Mean:
    """Return the mean of `values` ``[N]``, with a standard error from the sums of residuals within each `cluster` ``[N]``.

    ``se^2 = G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2 / N^2`` with Student's t of G - 1 degrees of freedom.
    The estimator of Liang and Zeger (1986, Biometrika 73, 13-22) with the correction for few clusters of Cameron and
    Miller (2015, Journal of Human Resources 50, 317-372, section VI), recommended for evaluations of language models by Miller
    (2024, arXiv 2411.00640, section 2.2). A cluster may have any size and any correlation within it.
    """
    from scipy import stats

    n = len(values)
    mean = float(np.mean(values, dtype=np.float64))
    residuals = values.astype(np.float64) - mean
    _, of = np.unique(cluster, return_inverse=True)
    groups = int(of.max()) + 1
    if groups < 2:
        return Mean(n, groups, mean, None, None, None, None)
    sums = np.bincount(of, residuals)
    se = math.sqrt(groups / (groups - 1) * float(sums @ sums)) / n
    naive = float(np.std(residuals, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, groups - 1)) * se
    return Mean(n, groups, mean, se, naive, mean - half, mean + half)


def documents(tokens: np.ndarray, eot_id: int) -> np.ndarray:
    """Return the number of each token's document; an end token belongs to the document that it ends."""
    ends = tokens == eot_id
    return np.cumsum(ends) - ends


def clusters(tokens: np.ndarray, eot_id: int, window: int) -> tuple[np.ndarray, str]:
    """Return the cluster of each token, and a description of the clusters.

    Clusters are documents if there are enough, else blocks of equal length, about `BLOCKS` in all. Blocks are cut within documents
    and have at least four windows of `window` tokens, so that correlations reach little beyond them."""
    document = documents(tokens, eot_id)
    n = int(document[-1]) + 1
    if n >= DOCUMENTS:
        return document, f"{n} documents"
    size = max(len(tokens) // BLOCKS, 4 * window)
    block = positions(document) // size
    names = document.astype(np.int64) * (len(tokens) + 1) + block
    count = len(np.unique(names))
    texts = "one document" if n == 1 else f"{n} documents"
    return names, f"{count} blocks of up to {size:,} tokens, since there {'is' if n == 1 else 'are'} only {texts}"


def positions(document: np.ndarray) -> np.ndarray:
    """Return the position of each token in its document, from 0."""
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    return np.arange(len(document)) - np.repeat(starts, np.diff(np.append(starts, len(document))))


def doubling_bins(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the bin of each count or position in 0, 1, 2-3, 4-7, ..., and the names of the bins."""
    bins = np.where(values > 0, np.frexp(np.maximum(values, 1).astype(np.float64))[1], 0)
    names = ["0", "1"]
    names += [f"{1 << i:,}-{(1 << (i + 1)) - 1:,}" for i in range(1, int(bins.max(initial=1)))]
    return bins, names[: int(bins.max(initial=0)) + 1]


def by_bin(a: np.ndarray, b: np.ndarray, values: np.ndarray, cluster: np.ndarray) -> list[dict[str, object]]:
    """Return mean nats of both runs and their difference b - a for the tokens of each doubling bin of `values`.

    `share` is the bin's part of the whole difference, summed over tokens."""
    bins, names = doubling_bins(values)
    total = float((b - a).sum(dtype=np.float64))
    rows: list[dict[str, object]] = []
    for i, name in enumerate(names):
        here = bins == i
        if here.any():
            mean = clustered_mean((b - a)[here], cluster[here])
            rows.append(
                {
                    "bin": name, "from": 0 if i == 0 else 1 << (i - 1), "tokens": mean.tokens, "clusters": mean.clusters,
                    "nats_a": float(a[here].mean(dtype=np.float64)), "nats_b": float(b[here].mean(dtype=np.float64)),
                    "difference": mean.mean, "low": mean.low, "high": mean.high,
                    "share": mean.mean * mean.tokens / total if total else None,
                }
            )  # fmt: skip
    return rows
