"""The mean of a difference over tokens, with an interval that knows that tokens of one text belong together."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

DOCUMENTS = 30  # from so many on they are the clusters; fewer are cut into blocks
BLOCKS = 100  # about, into which few documents are cut


class Mean(NamedTuple):
    """A mean over `tokens` tokens of `clusters` clusters, in the unit of the values. `se` is clustered, `naive_se` what it
    would be if tokens were independent; the interval is the 95 % one. None where one cluster alone has tokens."""

    tokens: int
    clusters: int
    mean: float
    se: float | None
    naive_se: float | None
    low: float | None
    high: float | None


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> Mean:
    """The mean of `values` ``[N]``, and its standard error from the sums of residuals within each cluster:
    ``se^2 = G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2 / N^2`` with Student's t of G - 1 degrees of freedom.

    The estimator of Liang and Zeger (1986, Biometrika 73, 13-22) with the correction for few clusters of Cameron and
    Miller (2015, Journal of Human Resources 50, 317-372, section VI); asked for in evaluations of language models by Miller
    (2024, arXiv 2411.00640, section 2.2). A cluster may have any size, and any correlation within it is allowed for.
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
    """The number of the document that each token stands in; an end token belongs to the document that it ends."""
    ends = tokens == eot_id
    return np.cumsum(ends) - ends


def clusters(tokens: np.ndarray, eot_id: int, window: int) -> tuple[np.ndarray, str]:
    """The cluster of each token, and what clusters are, in words.

    Documents where there are enough; else blocks of equal length, about `BLOCKS` in all, cut within documents and never
    shorter than four windows of `window` tokens, so that what tokens share reaches little beyond their block.
    """
    document = documents(tokens, eot_id)
    n = int(document[-1]) + 1
    if n >= DOCUMENTS:
        return document, f"{n} documents"
    size = max(len(tokens) // BLOCKS, 4 * window)
    block = places(document) // size
    names = document.astype(np.int64) * (len(tokens) + 1) + block
    count = len(np.unique(names))
    texts = "one document" if n == 1 else f"{n} documents"
    return names, f"{count} blocks of up to {size:,} tokens, since there {'is' if n == 1 else 'are'} only {texts}"


def places(document: np.ndarray) -> np.ndarray:
    """The place of each token in its document, from 0."""
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    return np.arange(len(document)) - np.repeat(starts, np.diff(np.append(starts, len(document))))


def doubling_bins(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Counts or places in bins 0, 1, 2-3, 4-7, ...: the bin of each value, and what the bins are called."""
    bins = np.where(values > 0, np.frexp(np.maximum(values, 1).astype(np.float64))[1], 0)
    names = ["0", "1"]
    names += [f"{1 << i:,}-{(1 << (i + 1)) - 1:,}" for i in range(1, int(bins.max(initial=1)))]
    return bins, names[: int(bins.max(initial=0)) + 1]


def by_bin(a: np.ndarray, b: np.ndarray, values: np.ndarray, cluster: np.ndarray) -> list[dict[str, object]]:
    """Mean nats of both runs, and their difference b - a, of the tokens whose value falls into each doubling bin;
    `share`: of the whole difference, summed over tokens."""
    bins, names = doubling_bins(values)
    total = float((b - a).sum(dtype=np.float64))
    rows: list[dict[str, object]] = []
    for i, name in enumerate(names):
        here = bins == i
        if here.any():
            found = clustered_mean((b - a)[here], cluster[here])
            rows.append(
                {
                    "bin": name, "from": 0 if i == 0 else 1 << (i - 1), "tokens": found.tokens, "clusters": found.clusters,
                    "nats_a": float(a[here].mean(dtype=np.float64)), "nats_b": float(b[here].mean(dtype=np.float64)),
                    "difference": found.mean, "low": found.low, "high": found.high,
                    "share": found.mean * found.tokens / total if total else None,
                }
            )  # fmt: skip
    return rows
