"""List the published systems that preset= names, with their counts.

  lmablate presets                     what each chooses, counted and announced parameters
  lmablate presets --csv > all.csv     every column

No model is built. Parameters, FLOPs and cache bytes are closed forms (``lmablate/budget``), which the tests compare
with the published counts. To train one: lmablate train preset=gpt2 shrink=tiny
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lmablate.budget import flops_per_token, kv_bytes_per_token, parameters
from lmablate.config.presets import Published, published, with_preset
from lmablate.config.resolve import resolve
from lmablate.core import console
from lmablate.core.axes import AXES
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.paths import CONF_DIR
from lmablate.schema.run_config import RunConfig, RunRequest

# Axes shown in a row. Heads are shown as query/key-value x head_dim.
SHOWN = ("norm", "norm_position", "activation", "posemb", "attention", "block_layout", "ffn")


def names() -> list[str]:
    """Return the names of the presets, oldest first."""
    found = {path.stem: _read("preset", path.stem)["preset"] for path in (CONF_DIR / "preset").glob("*.yaml")}
    return sorted(
        found, key=lambda name: (found[name]["year"], found[name]["system"].split()[0], found[name]["published_params"])
    )


@cache
def _defaults(model: str) -> dict[str, Any]:
    from lmablate.config.composition import request

    return request([f"model={model}", "trainer.precision=fp32", "runtime.device=cpu"])


@cache
def _read(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((CONF_DIR / group / f"{option}.yaml").read_text())


def _file(group: str, option: str) -> dict[str, Any]:
    """Return the content of an option's file, which the caller may change."""
    return deepcopy(_read(group, option))


def published_facts(name: str) -> Published:
    """Return the published facts in the file of a preset. Raises ConfigError for an unknown name."""
    path: Path = CONF_DIR / "preset" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"preset={name}: no such preset; there are {', '.join(names())}")
    return published(name, _file("preset", name)["preset"])


def config(name: str, shrink: str | None = None) -> RunConfig:
    """Return the configuration of ``preset=<name> shrink=<shrink>`` in fp32 on the CPU, without Hydra's half second."""
    raw, file = _defaults(shrink or "tiny"), _file("preset", name)
    chosen = {key.removeprefix("override /"): option for entry in file["defaults"] for key, option in entry.items()}
    model = dict(raw["model"])
    named = {"preset": name} | ({"shrink": shrink} if shrink else {})
    raw = raw | {"choices": raw["choices"] | chosen | named, "preset": file["preset"], "model": model}
    for axis, option in chosen.items():
        part = _file(axis, option)
        raw[axis] = part.get(axis, part)
        model.update(part.get("model", {}))
    request = RunRequest.model_validate(with_preset(raw, {}))

    def reference() -> RunConfig:
        raise ConfigError("a preset at its own size matches no budget")

    return resolve(request, {}, reference)


def rows() -> list[dict[str, Any]]:
    """Return one row a system: its choices, sizes and counts, and its announced size."""
    out = []
    for name in names():
        fact, cfg = published_facts(name), config(name)
        m, counted = cfg.model, parameters(cfg)
        stability = {} if cfg.choices["stability"] == "none" else {"stability": cfg.choices["stability"]}
        out.append(
            {"preset": name, "system": fact.system, "year": fact.year}
            | {axis: cfg.choices[axis] for axis in AXES if axis in SHOWN}
            | {"stability": stability.get("stability", ""), "n_layers": m.n_layers, "d_model": m.d_model}
            | {"n_heads": m.n_heads, "n_kv_heads": m.n_kv_heads, "head_dim": m.head_dim, "d_ff": m.d_ff}
            | {"vocab_size": m.vocab_size, "context_length": m.context_length}
            | {
                "params": counted.total,
                "active_params": counted.active,
                "published_params": fact.published_params,
                "announced": round(fact.announced),
                "diff_percent": round(100 * ((counted.total - (fact.uncounted or 0)) / fact.announced - 1), 2),
                "kv_bytes_per_token": kv_bytes_per_token(cfg),
                "flops_per_token": flops_per_token(cfg),
                "note": f"unconfirmed: {fact.unconfirmed}" if fact.unconfirmed else "",
                "source": fact.source,
            }
        )
    return out


_HEADERS = (
    *("preset", "what it chooses", "parameters", "announced", "diff"),
    *("layers", "d_model", "heads", "d_ff", "vocab", "active", "KV B/token", "FLOPs/token"),
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    options = [row[axis] for axis in (*SHOWN, "stability") if row[axis] not in ("", "serial", "pre", "dense")]
    heads = str(row["n_heads"]) if row["n_kv_heads"] == row["n_heads"] else f"{row['n_heads']}/{row['n_kv_heads']}"
    return (
        row["preset"],
        " ".join(options),
        f"{row['params']:,}" + (" *" if row["note"] else ""),
        short(row["announced"]),
        f"{row['diff_percent']:+.2f} %",
        str(row["n_layers"]),
        f"{row['d_model']:,}",
        f"{heads} x {row['head_dim']}",
        f"{row['d_ff']:,}",
        f"{row['vocab_size']:,}",
        short(row["active_params"]),
        f"{row['kv_bytes_per_token']:,}",
        f"{row['flops_per_token']:.2e}",
    )


def short(n: float) -> str:
    """Return a number as ``124M`` or ``8.03B``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.4g}{letter}"
    return f"{n:,}"


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    return console.markdown_table(_HEADERS, map(_cells, table))


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print the table, as much of it as fits the terminal."""
    kept = ("preset", "what it chooses", "parameters", "announced")
    columns = [
        console.Column(name, keep=name in kept, wrap=name == "what it chooses", left=name == "preset")
        for name in _HEADERS
    ]
    console.console().print(console.table(columns, [_cells(row) for row in table]))


LEGEND = """\
{count} systems. parameters: counted from the configuration; announced: the figure of its authors, often a rounded name.
*: some of its sizes are not confirmed. KV B/token: of the cache in bf16 over a full context; FLOPs/token: training, forward and backward.
Norms stand before their branch, blocks are serial and their networks dense where nothing else is said. --csv has every column.
To train one: preset=gpt2 shrink=tiny."""


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = command_parser("presets")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a Markdown table")
    form.add_argument("--csv", action="store_true", help="as CSV, with every column")
    args = parser.parse_args(argv)
    table = rows()
    if args.csv:
        writer = csv.DictWriter(sys.stdout, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    elif args.markdown:
        print(markdown(table))
    else:
        show(table)
        print(LEGEND.format(count=len(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
