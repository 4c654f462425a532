"""Measure how fast a model reads and writes, next to the prediction from bytes.

  lmablate inspect decode attention=mha,gqa,mqa,mla --lengths 128,512,2048 --batch 1,8
  lmablate inspect decode model=small --arm attention=mha --arm 'attention=mla attention.kv_rank=96'

Overrides are those of lmablate train; commas make a grid. Every arm reads a prompt of each length and then writes token
after token, the arms in turn. The first arm is what the others are compared with. The same rounds measure the machine's
memory bandwidth and its rate of matrix products, which give the prediction (``lmablate/decoding/roofline.py``). Numbers
have 4 bytes on a CPU, 2 on a GPU (runtime.device=cuda).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmablate.cli.front_door import main as front_door
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import atomic_write
from lmablate.core.paths import given_path
from lmablate.inspect.measured import bootstrap, differences, step_clock
from lmablate.runs.run_directory import check_writable

if TYPE_CHECKING:
    import pandas as pd

    from lmablate.schema.run_config import RunConfig

ROUNDS = 15
WARM = 2
MOST_PREFILL = 2**12  # tokens of a batch, above which reading the prompts is not timed


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the decoding of the arms of a command line. Return the exit code."""
    args, overrides = _parser().parse_known_args(argv)

    def show(configs: Sequence[RunConfig], launcher: str) -> int:
        if args.arm:
            from lmablate.config.composition import compose

            if len(configs) > 1:
                raise ConfigError("--arm says what the arms are, and so does a grid of words: use one of them")
            configs = [compose([*configs[0].overrides, *arm.split()]) for arm in args.arm]
        lengths, batches = numbers("--lengths", args.lengths, 2), numbers("--batch", args.batch, 1)
        (rounds,) = numbers("--rounds", args.rounds, 3)
        return inspect(configs, lengths, batches, rounds, args.out)

    grid = ["-m"] if any("," in one.partition("=")[2].strip("[") for one in overrides) and "-m" not in overrides else []
    return front_door("inspect", show, [*grid, *overrides])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("inspect decode", __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--arm", action="append", default=[], metavar="'WORDS'", help="an arm with overrides of its own; repeated")
    add(
        "--lengths",
        default="128,512,2048",
        metavar="N,N",
        help="tokens read before one is written (default: %(default)s)",
    )
    add("--batch", default="1,8", metavar="N,N", help="texts at a time (default: %(default)s)")
    add("--rounds", default=str(ROUNDS), metavar="N", help="timed steps of each arm, in turn (default: %(default)s)")
    where = f"decode.csv, decode.png (default: %(default)s); prompts are timed up to {MOST_PREFILL:,} tokens a batch"
    add("--out", type=given_path, default=Path("decode"), metavar="DIR", help=where)
    return parser


def numbers(key: str, text: str, least: int) -> list[int]:
    """Return ``1,8`` as numbers. Raises ConfigError for anything but whole numbers from `least` on."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) >= least for part in parts):
        raise ConfigError(f"{key} {text}: give whole numbers from {least} on, with commas between them")
    return [int(part) for part in parts]


def inspect(configs: Sequence[RunConfig], lengths: list[int], batches: list[int], rounds: int, out: Path) -> int:
    """Measure `configs`, print the results, and write them to `out`. Return the exit code."""
    import pandas as pd
    import torch

    from lmablate.analysis._style import save
    from lmablate.analysis.decode import figure
    from lmablate.runs.prepared import load_data, with_data

    check_writable(out, "--out")
    torch.set_num_threads(configs[0].runtime.threads)
    torch.set_flush_denormal(True)
    arms = dict(zip(labels(configs), (with_data(cfg, load_data(cfg)) for cfg in configs), strict=True))
    check_lengths(arms, lengths)
    tables = []
    for batch in batches:
        for length in lengths:
            cell = measure(arms, length, batch, rounds)
            print(cell_text(cell), flush=True)
            tables.append(cell)
    table = pd.concat(tables, ignore_index=True)
    atomic_write(out / "decode.csv", table.to_csv(index=False, float_format="%.6g"))
    paths = save(figure(table), out / "decode")
    print("wrote", ", ".join(map(str, (out / "decode.csv", *paths))))
    return 0


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Return a label for each arm: the overrides that not all arms have. Raises ConfigError for equal arms."""
    names = differences(configs)
    if len(set(names)) < len(names):
        raise ConfigError(f"two arms are the same ({', '.join(names)}): give each one that differs")
    if len(names) > 1 and all(name.startswith("attention=") for name in names):
        names = [name.removeprefix("attention=").replace(" attention.", " ").replace(" model.", " ") for name in names]
    return names


def check_lengths(arms: dict[str, RunConfig], lengths: list[int]) -> None:
    """Raise ConfigError for lengths that the positions do not have, and positions that the next token moves."""
    from lmablate.model import build_model

    for name, cfg in arms.items():
        posemb = build_model(cfg, device="meta").posemb
        if posemb.bounded and max(lengths) > cfg.model.context_length:
            raise ConfigError(
                f"--lengths: {name} has positions for {cfg.model.context_length} tokens, and {max(lengths)} are asked for: raise "
                "model.context_length"
            )
        moving = [length for length in lengths if posemb.moves(length - 1, length)]
        if moving:
            raise ConfigError(
                f"--lengths: at {moving[0]} tokens {name} (posemb={cfg.choices['posemb']}) has each token move the positions of all "
                "others: generation reads the text anew, and no cache can be timed: choose shorter texts or other positions"
            )


def measure(arms: dict[str, RunConfig], length: int, batch: int, rounds: int) -> pd.DataFrame:
    """Return a row per arm, for `batch` texts of `length` tokens.

    Times are medians over rounds, in each of which every arm has its turn."""
    import numpy as np
    import pandas as pd

    from lmablate.decoding.roofline import prefill_cost, step_cost, weight_bytes

    cfg = next(iter(arms.values()))
    number = 4 if cfg.runtime.device == "cpu" else 2
    timed = _clocked(cfg)
    work = {name: _Work(arm, length, batch) for name, arm in arms.items()}
    probes = machine_probes(cfg.runtime.device)
    prefill: dict[str, list[float]] = {name: [] for name in arms}
    if batch * length <= MOST_PREFILL:
        for turn in range(1 + max(1, min(rounds, 4096 // (batch * length)))):
            for name in _turned(list(arms), turn):
                seconds = timed(work[name].read)
                if turn or batch * length > 1024:  # long texts need no warm-up
                    prefill[name].append(seconds)
    steps: dict[str, list[float]] = {name: [] for name in (*arms, *probes)}
    for one in work.values():
        one.fill()
    for turn in range(WARM + rounds):
        for name in _turned(list(steps), turn):
            seconds = timed(probes[name][1] if name in probes else work[name].step)
            if turn >= WARM:
                steps[name].append(seconds)
    bandwidth, peak = (amount / float(np.median(steps[name])) for name, (amount, _) in probes.items())
    rows = []
    for name, arm in arms.items():
        low, high = bootstrap(np.asarray(steps[name]), np.median)
        middle = float(np.median(steps[name]))
        cost, reading = step_cost(arm, length, batch, number), prefill_cost(arm, length, batch, number)
        read = float(np.median(prefill[name])) if prefill[name] else float("nan")
        rows.append(
            {
                "arm": name,
                "batch": batch,
                "length": length,
                "cache_bytes": work[name].decoder.n_bytes,
                "weight_bytes": weight_bytes(arm, number),
                "step_ms": 1e3 * middle,
                "low_ms": 1e3 * float(low),
                "high_ms": 1e3 * float(high),
                "predicted_ms": 1e3 * cost.seconds(bandwidth, peak),
                "tokens_per_second": batch / middle,
                "bytes": cost.n_bytes,
                "flops": cost.flops,
                "prefill_ms": 1e3 * read,
                "prefill_predicted_ms": 1e3 * reading.seconds(bandwidth, peak),
                "prefill_tokens_per_second": batch * length / read,
                "bandwidth": bandwidth,
                "peak": peak,
                "rounds": rounds,
            }
        )
    return pd.DataFrame(rows)


class _Work:
    """One arm: its model, its prompts, and its cache."""

    def __init__(self, cfg: RunConfig, length: int, batch: int) -> None:
        import torch

        from lmablate.decoding import Decoder
        from lmablate.model import build_model

        device = cfg.runtime.device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.model = build_model(cfg).to(device=device, dtype=dtype).eval()
        draws = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(0, cfg.model.vocab_size, (batch, length), generator=draws).to(device)
        self.decoder = Decoder(self.model, batch, length)

    def read(self) -> None:
        """Read all prompts at once."""
        self.decoder.start = 0
        self.decoder.next_logits(self.prompt)

    def fill(self) -> None:
        """Fill the whole cache with a number; its value does not change the time of a step."""
        for cache in self.decoder.caches:
            for tensor in cache.tensors:
                tensor.fill_(0.5)

    def step(self) -> None:
        """Write one token, the last of `length`."""
        self.decoder.start = self.prompt.shape[1] - 1
        self.decoder.next_logits(self.prompt[:, -1:])


def machine_probes(device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Return the probes of the machine: an amount, and the work that it measures.

    They are the bytes of a sum over more memory than the caches hold, and the FLOPs of a square matrix product."""
    import torch

    gpu = device != "cpu"
    side, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    long = torch.ones(2**30 if gpu else 2**26, dtype=torch.float32, device=device)
    square = torch.ones(side, side, dtype=dtype, device=device)
    return {
        "bandwidth probe": (float(long.nbytes), long.sum),
        "product probe": (2.0 * side**3, lambda: square @ square),
    }


def _clocked(cfg: RunConfig) -> Callable[[Callable[[], Any]], float]:
    """Return a function that gives the seconds of some work."""
    import torch

    clock = step_clock(cfg)

    def settled() -> float:
        if cfg.runtime.device != "cpu":
            torch.cuda.synchronize()
        return clock()

    def timed(work: Callable[[], Any]) -> float:
        began = settled()
        work()
        return settled() - began

    return timed


def _turned(names: list[str], turn: int) -> list[str]:
    """Return the names in an order rotated by `turn`, so that none always follows the same neighbour."""
    shift = turn % len(names)
    return names[shift:] + names[:shift]


def cell_text(cell: pd.DataFrame) -> str:
    """Return one batch and length as text."""
    first, wide = cell.iloc[0], max(map(len, cell["arm"])) + 2
    lines = [
        f"batch {first.batch}, {first.length:,} tokens; {first.bandwidth / 1e9:.1f} GB/s, {first.peak / 1e9:.0f} GFLOP/s",
        f"{'':<{wide}}{'cache':>10}{'ms/step':>10}{'95 %':>18}{'predicted':>11}{'tokens/s':>10}{'prefill/s':>11}",
    ]
    for row in cell.itertuples():
        band = f"{row.low_ms:.3g} to {row.high_ms:.3g}"
        reading = "-" if row.prefill_ms != row.prefill_ms else f"{row.prefill_tokens_per_second:,.0f}"
        lines.append(
            f"{row.arm:<{wide}}{row.cache_bytes / 2**20:>6.1f} MiB{row.step_ms:>10.3g}{band:>18}{row.predicted_ms:>11.3g}"
            f"{row.tokens_per_second:>10,.0f}{reading:>11}"
        )
    return "\n".join(lines) + "\n"
