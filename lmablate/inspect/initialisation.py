"""Measure gradients and signals through the stack before any training.

  lmablate inspect init norm_position=pre,post norm=rms,layer --depths 6,12,24 --out init
  lmablate inspect init posemb=rope,none --inits 8 --out init

Every arm is a combination of the given overrides. Each is built at several depths and with several draws of its weights,
and reads the batch of a run's first step. The output is the size of the gradients and the activations of each layer.
The question is Xiong et al. 2020's (arXiv 2002.04745).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.config import compose
from lmablate.core.commands import command_parser
from lmablate.core.console import Line
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.runs.run_directory import check_writable
from lmablate.stats import interval

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.data import TokenData
    from lmablate.schema.run_config import RunConfig

DEPTHS, INITS = (6, 12, 18, 24, 32), 20
DEFAULT = "norm_position=pre,post"
TAKEN = {"model.n_layers": "--depths", "seed": "--inits", "init_seed": "--inits"}
# Measured for each layer: the column, and the name of the number in lmablate/diagnostics.
MEASURES = {
    "attn_gradient": "attn/grad_norm",
    "ffn_gradient": "ffn/grad_norm",
    "stream_rms": "stream_rms",
    "attn_rms": "attn/out_rms",
    "ffn_rms": "ffn/out_rms",
}
DEFINITIONS = (
    "Gradient norms are those of the FFN's last matrix. slope: of log gradient norm on the number of the layer; last over first: the",
    "last layer's gradient norm over the first one's; stream growth: the residual stream's RMS after the last layer over that after the",
    "first; exponent: of the last layer's gradient norm as a power of depth. In brackets: 95 % intervals over draws of the weights.",
)
GRADIENT = "gradient"  # of the FFN's last matrix, which the theorem is about


@exit_on_config_error
def main(argv: Sequence[str]) -> int:
    """Measure the arms of a command line. Return 0. Raises ConfigError."""
    args, unknown = _parser().parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such option; overrides are key=value, and --help lists the rest")
    print("\n".join(inspect(args)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("inspect init", __doc__)
    add = parser.add_argument
    add("overrides", nargs="*", help=f"as for lmablate train; a,b makes arms (default: {DEFAULT})")
    add("--depths", default=",".join(map(str, DEPTHS)), help="numbers of layers (default: %(default)s)")
    add("--inits", type=int, default=INITS, help="draws of the weights (default: %(default)s)")
    add(
        "--out",
        type=given_path,
        required=True,
        metavar="DIR",
        help="takes layers.csv, summary.csv, gradient_norm.png and .svg",
    )
    return parser


def inspect(args: argparse.Namespace) -> list[str]:
    """Measure the arms, write the results, and return the lines to print. Raises ConfigError before any computation."""
    depths = _depths(args.depths)
    if args.inits < 2:
        raise ConfigError(f"--inits {args.inits}: an interval needs at least 2 draws")
    configs = {arm: [_config(overrides, depth) for depth in depths] for arm, overrides in arms(args.overrides).items()}
    check_writable(args.out, "--out")
    table = measure(configs, args.inits)
    return write(by_layer(table), summarise(table), args.out)


def _depths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 1 for part in parts) or len(set(map(int, parts))) < 2:
        raise ConfigError(f"--depths {text}: give two or more different numbers of layers above 1, such as 6,12,24")
    return sorted(set(map(int, parts)))


def arms(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of every combination of values, by a name made of those that vary. Raises ConfigError."""
    keys: dict[str, list[str]] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override}: overrides are key=value")
        if key in TAKEN:
            raise ConfigError(f"{override}: {TAKEN[key]} says that here")
        keys[key] = [value] if value[:1] in "[{'\"" else value.split(",")
    if "norm_position" not in keys:
        keys["norm_position"] = DEFAULT.partition("=")[2].split(",")
    combinations = {}
    for values in itertools.product(*keys.values()):
        pairs = dict(zip(keys, values, strict=True))
        name = ", ".join(_value_name(key, pairs[key]) for key in keys if len(keys[key]) > 1)
        combinations[name or pairs["norm_position"]] = [f"{key}={value}" for key, value in pairs.items()]
    return combinations


def _value_name(key: str, value: str) -> str:
    """Return the value alone if its key is an axis, else with the key: ``init default``, ``n_heads 4``."""
    name = key.rpartition(".")[2]
    return value if "." not in key else f"{name} {'default' if value == 'null' else value}"


def _config(overrides: Sequence[str], depth: int) -> RunConfig:
    """Return the configuration of an arm. With an encoder, both stacks have `depth` layers, and the decoder is measured."""
    precision = [] if any(one.startswith("trainer.precision=") for one in overrides) else ["trainer.precision=fp32"]
    whole = [*overrides, *precision, f"model.n_layers={depth}", "runtime.wandb=disabled"]
    two = [one for one in overrides if one.startswith("model.n_encoder_layers=") and not one.endswith("=null")]
    return compose([*whole, f"model.n_encoder_layers={depth}"] if two else whole)


def measure(configs: dict[str, list[RunConfig]], inits: int) -> pd.DataFrame:
    """Return one row for each arm, depth, draw and layer (from 1).

    `gradient` is the norm of the gradient of the mean loss for the FFN's last matrix. Further columns are the norms over all of
    attention's and the FFN's weights, and the RMS of the residual stream after the layer and of the branches' outputs."""
    import pandas as pd
    import torch

    from lmablate.runs.prepared import load_data, with_data

    threads = torch.get_num_threads()
    rows, done, line = [], 0, Line()
    total = sum(cfg.model.n_layers for by_depth in configs.values() for cfg in by_depth) * inits
    try:
        for arm, by_depth in configs.items():
            for cfg in by_depth:
                torch.set_num_threads(cfg.runtime.threads)
                data = load_data(cfg)
                final = with_data(cfg, data)
                for init in range(inits):
                    own = final.model_copy(update={"init_seed": init})
                    where = {"arm": arm, "depth": cfg.model.n_layers, "init": init}
                    line.update("layers measured", done, total)
                    rows += [{**where, **layer} for layer in one(own, data)]
                    done += cfg.model.n_layers
    finally:
        line.end()
        torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def one(cfg: RunConfig, data: TokenData) -> list[dict[str, Any]]:
    """Return the rows of one untrained model's layers, on the batch of a run's first step."""
    from lmablate.diagnostics import activations
    from lmablate.diagnostics.gradients import gradient_norms
    from lmablate.diagnostics.module_names import Measurements, branches, groups, layers
    from lmablate.model import build_model
    from lmablate.training.trainer import Trainer

    trainer = Trainer(build_model(cfg), data, cfg, folder=None)
    numbers: Measurements = {}
    with activations.watching(trainer.model, numbers, stream=True, units=False):
        trainer.backward(trainer.rows(0))
    numbers |= gradient_norms(groups(trainer.model))
    rows = []
    for number, (layer, block) in enumerate(layers(trainer.model), 1):
        (ffn,) = (branch for name, branch in branches(block) if name == "ffn")
        last = gradient_norms({layer: [ffn.out_proj.weight]})[f"{layer}/grad_norm"]  # type: ignore[union-attr,list-item]
        own = {column: float(numbers[f"{layer}/{name}"]) for column, name in MEASURES.items()}
        rows.append({"layer": number, GRADIENT: float(last), **own})
    return rows


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each arm, depth and layer the geometric mean over draws of every measure, with the gradient's 95 % interval."""
    import numpy as np
    import pandas as pd

    rows = []
    for (arm, depth, layer), some in table.groupby(["arm", "depth", "layer"], sort=False):
        logs = np.log(some[[GRADIENT, *MEASURES]])
        means = {column: math.exp(logs[column].mean()) for column in logs}
        low, high = (math.exp(bound) for bound in interval(logs[GRADIENT].tolist()) or (math.nan, math.nan))
        where = {"arm": arm, "depth": depth, "layer": layer, "inits": len(some)}
        rows.append({**where, GRADIENT: means.pop(GRADIENT), "low": low, "high": high, **means})
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the quantities of the claim: means over draws with 95 % t intervals, one number per draw.

    ``slope`` (of one depth): of the least-squares line of log gradient norm on layer index; ``last over first``: the
    gradient norm of the last layer over the first one's; ``stream growth``: the residual stream's RMS after the last
    layer over that after the first; ``exponent``: of the line of the last layer's log gradient norm on log depth.
    """
    import numpy as np
    import pandas as pd

    rows = []
    for arm, mine in table.groupby("arm", sort=False):
        for depth, some in mine.groupby("depth", sort=False):
            draws = [one for _, one in some.sort_values("layer").groupby("init")]
            slopes = [float(np.polyfit(d["layer"], np.log(d[GRADIENT]), 1)[0]) for d in draws]
            rows.append(_row(arm, depth, "slope", slopes))
            for name, column in (("last over first", GRADIENT), ("stream growth", "stream_rms")):
                ends = [math.log(d[column].iloc[-1] / d[column].iloc[0]) for d in draws]
                rows.append(_row(arm, depth, name, ends, exponential=True))
        last = mine[mine["layer"] == mine["depth"]].sort_values("depth")
        exponents = [float(np.polyfit(np.log(d["depth"]), np.log(d[GRADIENT]), 1)[0]) for _, d in last.groupby("init")]
        rows.append(_row(arm, None, "exponent", exponents))
    frame = pd.DataFrame(rows)
    frame["depth"] = frame["depth"].astype("Int64")
    return frame


def _row(arm: Any, depth: Any, quantity: str, values: list[float], *, exponential: bool = False) -> dict[str, Any]:
    low, high = interval(values) or (math.nan, math.nan)
    numbers = [sum(values) / len(values), low, high]
    if exponential:
        numbers = [math.exp(number) for number in numbers]
    where = {"arm": arm, "depth": depth, "quantity": quantity}
    return {**where, **dict(zip(("estimate", "low", "high"), numbers, strict=True))}


def write(layers: pd.DataFrame, summary: pd.DataFrame, folder: Path) -> list[str]:
    """Write the tables and the figure. Return the results as lines."""
    import logging

    from lmablate.analysis._style import save
    from lmablate.analysis.gradient_norm import figure

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    atomic_write(folder / "layers.csv", layers.to_csv(index=False, float_format="%.5g"))
    atomic_write(folder / "summary.csv", summary.to_csv(index=False, float_format="%.5g"))
    paths = save(figure(layers), folder / "gradient_norm")
    deepest = summary["depth"].max()
    lines = []
    for arm, mine in summary.groupby("arm", sort=False):
        lines.append(f"{arm}:")
        for row in mine.to_dict("records"):
            if row["quantity"] == "exponent" or row["depth"] in (summary["depth"].min(), deepest):
                where = (
                    "of the last layer's gradient norm on depth"
                    if row["quantity"] == "exponent"
                    else f"at {row['depth']} layers"
                )
                value = f"{row['estimate']:9.3g} [{row['low']:.3g}, {row['high']:.3g}]"
                lines.append(f"  {row['quantity']:<16}{value:<36}{where}")
    written = ", ".join(str(path) for path in (folder / "layers.csv", folder / "summary.csv", *paths))
    return [*lines, "", *DEFINITIONS, f"wrote {written}"]
