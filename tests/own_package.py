"""A package of a user's own in an empty folder, with its parts, to be edited as its author would."""

import importlib
import sys
from pathlib import Path

from lmablate.core import source_code

PARTS = '''
"""Parts of my own."""

import torch
from torch import nn

from lmablate.model.attention.heads import MultiHead
from lmablate.model.ffn import FeedForward, FFNOption

from . import helpers


class MaxNorm(nn.Module):
    def __init__(self, d_model: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return helpers.FACTOR * x / (x.abs().amax(-1, keepdim=True) + self.eps)


class Gated(MultiHead):
    def __init__(self, shape, *, layer: int, scale: float | None) -> None:
        super().__init__(shape, layer=layer, scale=scale)
        self.gate = nn.Linear(shape.d_model, shape.d_model)
        self.offset = nn.Parameter(torch.randn(shape.d_model))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, positions):
        if self.training:
            self.seen += 1
        noise = 0.1 * torch.rand_like(x) * self.seen
        return super().forward(x, positions) * torch.sigmoid(self.gate(x) + self.offset + noise)


class Snake(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(()) + 1e-3)  # my own

    def forward(self, x):
        return x + torch.sin(self.a * x).square() / self.a


class TwoLayers(FeedForward):
    def __init__(self, shape):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(shape.d_model, 2 * shape.d_ff), nn.GLU(), nn.Dropout(shape.dropout))
        self.out_proj = nn.Linear(shape.d_ff, shape.d_model)

    def forward(self, x, positions):
        return self.out_proj(self.inner(x))


class Maxout(FFNOption):
    def branch(self, shape, *, layer):
        return TwoLayers(shape)


class Miscounted(Gated):
    @classmethod
    def matmul_params(cls, shape, settings):
        return super().matmul_params(shape, settings)

    @classmethod
    def n_bias_and_gain_params(cls, shape, settings):
        return super().n_bias_and_gain_params(shape, settings)
'''
OPTIONS = {
    "norm/users_largest": "# Mine. norm=users_largest\n_target_: mypackage.parts.MaxNorm\neps: 1.0e-6\n",
    "attention/users_gated": "# Mine. attention=users_gated\n_target_: mypackage.parts.Gated\nscale: null\n",
    "activation/users_snake": "# Mine. activation=users_snake\ngated: false\nfn:\n  _target_: mypackage.parts.Snake\n",
    "ffn/users_maxout": "# Mine. ffn=users_maxout\n_target_: mypackage.parts.Maxout\n",
    "attention/miscounted": "# Mine. attention=miscounted\n_target_: mypackage.parts.Miscounted\nscale: null\n",
}


def write_package(folder: Path) -> Path:
    """``mypackage`` and ``conf/`` in `folder`; returns the module of the parts."""
    package = folder / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "helpers.py").write_text("FACTOR = 1.0\n")
    (package / "parts.py").write_text(PARTS)
    for option, text in OPTIONS.items():
        path = folder / "conf" / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package / "parts.py"


def as_new_process() -> None:
    """Forget what this process has loaded of the package, as the next command would find it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    source_code._read.cache_clear()
