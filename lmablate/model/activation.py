"""Axis ``activation``: the pointwise function of the FFN and whether it gates.

An option is ``gated`` (true or false) and ``fn``, a function of one tensor or a module class. The YAML files name functions of
``torch.nn.functional`` directly; this module has the others.
"""

import torch.nn.functional as F
from torch import Tensor


def relu2(x: Tensor) -> Tensor:
    """Return ``max(0, x)^2`` (So et al. 2021, Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """Return `x`: a plain FFN becomes one linear map, a gated one the bilinear layer (Shazeer 2020, arXiv 2002.05202)."""
    return x
