"""Write text with a finished run: its checkpoint, its tokenizer.

  lmablate sample results/0123456789ab --prompt 'In the beginning'
  lmablate sample results/0123456789ab --temperature 0.8 --top-p 0.95 --n 3 --seed 1

The prompt is read at once, after the token that ends a document. Each further token is drawn from the model's
distribution given the text so far.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.cli.arguments import add_device, add_threads, add_trust, device_of
from lmablate.cli.front_door import trust_packages
from lmablate.core import access
from lmablate.core.commands import command_parser
from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.runs.config_file import read_config
from lmablate.runs.run_directory import RunDirectory, run_path

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.decoding import Sampling
    from lmablate.schema.run_config import RunConfig


@exit_on_config_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    _sample(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sample")
    add = parser.add_argument
    add("run_dir", type=run_path, metavar="RUN_DIR", help="the folder of a run, RESULTS_DIR/<run_id>")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with (default: nothing)")
    begin.add_argument(
        "--prompt-file", metavar="FILE", help="the same from a file of UTF-8 text; - is the standard input"
    )
    add("--tokens", type=int, default=200, metavar="N", help="to write, at most (default: %(default)s)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token (default: %(default)s)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that together have probability P")
    add("--seed", type=int, default=0, metavar="SEED", help="of the draws (default: %(default)s)")
    add("--n", type=int, default=1, metavar="N", help="texts to write (default: %(default)s)")
    add_device(parser)
    add_threads(parser)
    add_trust(parser)
    return parser


def _sample(args: argparse.Namespace) -> None:
    for key in ("tokens", "n", "threads"):
        if getattr(args, key) < 1:
            raise ConfigError(f"--{key} {getattr(args, key)}: give 1 or more")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: give 0 or more")

    from lmablate.decoding import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    if sampling.temperature == 0 and args.n > 1:
        raise ConfigError(f"--n {args.n}: at --temperature 0 all texts are the same one; leave --n out, or raise it")

    trust_packages(args.trust)
    texts = write(
        args.run_dir,
        _prompt(args),
        args.tokens,
        sampling,
        seed=args.seed,
        n=args.n,
        device=args.device,
        threads=args.threads,
    )
    for number, text in enumerate(texts, 1):
        print(f"--- {number} of {len(texts)}\n{text}" if len(texts) > 1 else text)


def _prompt(args: argparse.Namespace) -> str:
    """Return the text of the command line, or the unchanged text of a file. Raises ConfigError if it is not UTF-8."""
    if args.prompt_file is None:
        try:
            args.prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "--prompt: holds bytes that are not UTF-8; give it in a file that is, with --prompt-file FILE"
            ) from None
        return str(args.prompt)
    try:
        raw = sys.stdin.buffer.read() if args.prompt_file == "-" else Path(args.prompt_file).read_bytes()
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--prompt-file {args.prompt_file}: not UTF-8 (byte {error.start}): convert it first"
        ) from None
    except OSError as error:
        raise ConfigError(f"--prompt-file {args.prompt_file}: cannot be read ({error.strerror})") from None


def write(
    run_dir: Path,
    prompt: str,
    tokens: int,
    sampling: Sampling,
    *,
    seed: int,
    n: int,
    device: str = "cpu",
    threads: int = 1,
) -> list[str]:
    """Return `n` texts of a run, each the prompt and a continuation to the end of the document or by `tokens` tokens.
    Raises ConfigError."""
    import torch

    from lmablate.decoding import generate
    from lmablate.objective import OBJECTIVES, Objective
    from lmablate.runs.evaluate_run import check_finished, ready
    from lmablate.runs.load import load_run

    device = device_of(device)
    torch.set_num_threads(threads)
    check_finished(run_dir, "sample from")
    _check_text(run_dir)
    model, cfg, data = load_run(run_dir)
    ids = [data.eot_id, *data.encode(prompt)]
    _check_length(cfg, len(ids), tokens)
    rows = torch.tensor([ids] * n, device=device)
    if OBJECTIVES[cfg.objective.kind].reserved is not Objective.reserved:
        raise ConfigError(
            f"{run_dir}: objective={cfg.objective.kind} tells hidden tokens of a text and does not continue it: sample from a run of "
            "objective=causal or prefix"
        )
    prefix = len(ids) if OBJECTIVES[cfg.objective.kind].looks_ahead else None
    found = generate(ready(model, cfg, device), rows, tokens, sampling, seed=seed, end=data.eot_id, prefix=prefix)
    return [_text(row, data) for row in found[:, 1:].tolist()]


def _check_text(run_dir: Path) -> None:
    """Raise ConfigError for runs that write no text, before their data is opened."""
    path = RunDirectory.at(run_dir).config_path
    if not access.there(path):
        return  # load_run raises the error for it
    cfg = read_config(path)
    if cfg.tokenizer is None:
        raise ConfigError(
            f"{run_dir}: the run was trained on data={cfg.choices.get('data')}, a task whose tokens stand for no text"
        )


def _check_length(cfg: RunConfig, prompt: int, tokens: int) -> None:
    """Raise ConfigError for a text beyond a table of positions, and print a note on one longer than the training context."""
    from lmablate.model import components

    trained = cfg.model.context_length
    if prompt + tokens - 1 <= trained:  # the last token is not read
        return
    if not components.target(cfg.posemb, "posemb").bounded:
        print(
            f"note: the prompt has {prompt} tokens, and {tokens} more go beyond the {trained} of the run's training texts",
            file=sys.stderr,
        )
        return
    limit = f"posemb={cfg.choices['posemb']} has positions for {trained} tokens"
    if prompt > trained:
        raise ConfigError(f"--prompt: {limit}, and the prompt has {prompt}: shorten it by {prompt - trained}")
    raise ConfigError(
        f"--tokens {tokens}: {limit}, of which the prompt takes {prompt}: ask for at most {trained - prompt + 1} tokens"
    )


def _text(ids: list[int], data: TokenData) -> str:
    """Return the text up to the end of its document."""
    return data.decode(ids[: ids.index(data.eot_id)] if data.eot_id in ids else ids)


if __name__ == "__main__":
    sys.exit(main())
