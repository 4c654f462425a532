"""The best size and number of tokens for a budget, by a law of both (Hoffmann et al. 2022, equation 4).

With ``C = 6 N D``: ``N = G (C / 6)^a`` and ``D = (C / 6)^b / G``, where ``a = beta / (alpha + beta)``, ``b = alpha / (alpha +
beta)`` and ``G = (alpha A / (beta B))^(1 / (alpha + beta))``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from lmablate.scaling.law import Law

PER_PARAM = 6  # FLOPs of a token for each parameter


class Optimum(NamedTuple):
    """The best `params` and `tokens` for a budget of `flops`, with 90 % intervals, and the `loss` there."""

    flops: float
    params: float
    params_interval: tuple[float, float]
    tokens: float
    tokens_interval: tuple[float, float]
    loss: float


def exponent(values: Mapping[str, float]) -> float:
    """Return a of ``N_opt ~ C^a``; b of the tokens is 1 - a."""
    return values["beta"] / (values["alpha"] + values["beta"])


def best_params(values: Mapping[str, float], flops: float) -> float:
    """Return N_opt at a budget of `flops`."""
    alpha, beta = values["alpha"], values["beta"]
    log_g = (math.log(alpha / beta) + math.log(values["A"]) - math.log(values["B"])) / (alpha + beta)
    return math.exp(log_g + exponent(values) * math.log(flops / PER_PARAM))


def optimum(law: Law, flops: float) -> Optimum:
    """Return the optimum of a chinchilla law at a budget of `flops`."""

    def tokens(values: Mapping[str, float]) -> float:
        return flops / PER_PARAM / best_params(values, flops)

    values = law.values
    params = best_params(values, flops)
    loss = values["E"] + values["A"] / params ** values["alpha"] + values["B"] / tokens(values) ** values["beta"]
    bounds = law.interval(lambda one: best_params(one, flops)), law.interval(tokens)
    return Optimum(flops, params, bounds[0], tokens(values), bounds[1], loss)
