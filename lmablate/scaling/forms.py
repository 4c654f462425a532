"""The forms of scaling laws: sums of power laws and a floor, in log space.

chinchilla: ``L(N, D) = E + A / N^alpha + B / D^beta`` (Hoffmann et al. 2022, arXiv 2203.15556, equation 2).
compute: ``L(C) = E + A / C^alpha``.
kaplan_n, kaplan_d, kaplan_c: ``L(x) = (x_c / x)^alpha`` of parameters, tokens or FLOPs (Kaplan et al. 2020, arXiv 2001.08361,
equations 1.1 to 1.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lmablate.core.errors import ConfigError

Columns = Mapping[str, np.ndarray]


class Term(NamedTuple):
    """One power law: its `column`, and the names of its `scale` and its `exponent`."""

    column: str
    scale: str
    exponent: str


class Form(NamedTuple):
    """A law: its `terms`, and whether it has a `floor` E. Without one its scale is the size at which the loss is 1."""

    name: str
    formula: str
    terms: tuple[Term, ...]
    floor: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that a point needs besides its loss."""
        return tuple(term.column for term in self.terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the parameters: E, then the scales, then the exponents."""
        scales, exponents = (tuple(getattr(term, kind) for term in self.terms) for kind in ("scale", "exponent"))
        return (*(("E",) if self.floor else ()), *scales, *exponents)

    def log_loss(self, theta: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the log of the loss ``[..., points]`` and its derivatives ``[..., points, parameters]``.

        `theta` ``[..., parameters]``: log E if there is a floor, then log scale and exponent of each term, of terms
        ``exp(a - alpha x)``. `logs`: the log sizes x ``[terms, points]``, from any origin."""
        first, column = int(self.floor), np.moveaxis(theta, -1, 0)[..., None]
        parts = [column[first + 2 * i] - column[first + 2 * i + 1] * x for i, x in enumerate(logs)]
        if self.floor:
            parts = [np.broadcast_to(column[0], parts[0].shape), *parts]
        top = np.maximum.reduce(parts)
        shares = [np.exp(part - top) for part in parts]
        total = sum(shares)
        slopes = [shares[0] / total] if self.floor else []
        for i, x in enumerate(logs):
            share = shares[first + i] / total
            slopes += [share, -share * x]
        return top + np.log(total), np.stack(slopes, -1)


FORMS = {
    form.name: form
    for form in (
        Form(
            "chinchilla",
            "L = E + A / params^alpha + B / tokens^beta",
            (Term("params", "A", "alpha"), Term("tokens", "B", "beta")),
            True,
        ),
        Form("compute", "L = E + A / flops^alpha", (Term("flops", "A", "alpha"),), True),
        Form("kaplan_n", "L = (N_c / params)^alpha", (Term("params", "N_c", "alpha"),), False),
        Form("kaplan_d", "L = (D_c / tokens)^alpha", (Term("tokens", "D_c", "alpha"),), False),
        Form("kaplan_c", "L = (C_c / flops)^alpha", (Term("flops", "C_c", "alpha"),), False),
    )
}


def form_of(name: str) -> Form:
    """Return a form by its name. Raises ConfigError."""
    if name not in FORMS:
        raise ConfigError(f"--form {name}: there is no such form; there are {', '.join(FORMS)}")
    return FORMS[name]
