"""``python -m lmablate.sample RUN_DIR``: text from a finished run.

The prompt, behind the token that ends a document, is read at once, and each further token is drawn from what the run's model
gives for the text so far (lmablate/decoding).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmablate.cli.front_door import trust_packages
from lmablate.core import access
from lmablate.core.errors import ConfigError, in_words
from lmablate.runs.config_file import read_config
from lmablate.runs.run_directory import RunDirectory, run_path

if TYPE_CHECKING:
    from lmablate.data import TokenData
    from lmablate.decoding import Sampling
    from lmablate.schema.run_config import RunConfig

EXAMPLES = """examples:
  python -m lmablate.sample results/0123456789ab --prompt 'In the beginning'
  python -m lmablate.sample results/0123456789ab --prompt-file letter.txt
  python -m lmablate.sample results/0123456789ab --temperature 0.8 --top-p 0.95 --n 3 --seed 1
"""


@in_words
def main(argv: Sequence[str] | None = None) -> int:
    """Write text; returns the exit code."""
    asked = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    _sample(asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lmablate.sample",
        description="Text from a finished run: its checkpoint, its tokenizer.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add("--threads", type=int, default=1, metavar="N", help="of the processor (default: %(default)s)")
    add("--trust", action="append", default=[], metavar="PACKAGE", help="a package with parts of your own")
    return parser


def _sample(asked: argparse.Namespace) -> None:
    for key in ("tokens", "n", "threads"):
        if getattr(asked, key) < 1:
            raise ConfigError(f"--{key} {getattr(asked, key)}: give 1 or more")
    if asked.seed < 0:
        raise ConfigError(f"--seed {asked.seed}: give 0 or more")

    from lmablate.decoding import Sampling

    sampling = Sampling(asked.temperature, asked.top_k, asked.top_p)
    if sampling.temperature == 0 and asked.n > 1:
        raise ConfigError(f"--n {asked.n}: at --temperature 0 all texts are the same one; leave --n out, or raise it")

    trust_packages(asked.trust)
    texts = write(
        asked.run_dir,
        _prompt(asked),
        asked.tokens,
        sampling,
        seed=asked.seed,
        n=asked.n,
        device=asked.device,
        threads=asked.threads,
    )
    for number, text in enumerate(texts, 1):
        print(f"--- {number} of {len(texts)}\n{text}" if len(texts) > 1 else text)


def _prompt(asked: argparse.Namespace) -> str:
    """The text of the command line, or of a file as it is. Raises ConfigError for what is no text."""
    if asked.prompt_file is None:
        try:
            asked.prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "--prompt: holds bytes that are not UTF-8; give it in a file that is, with --prompt-file FILE"
            ) from None
        return str(asked.prompt)
    try:
        raw = sys.stdin.buffer.read() if asked.prompt_file == "-" else Path(asked.prompt_file).read_bytes()
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--prompt-file {asked.prompt_file}: not UTF-8 (byte {error.start}): convert it first"
        ) from None
    except OSError as error:
        raise ConfigError(f"--prompt-file {asked.prompt_file}: cannot be read ({error.strerror})") from None


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
    """`n` texts of a run, the prompt first, each up to the end of its document or `tokens` tokens. Raises ConfigError."""
    import torch

    from lmablate.decoding import generate
    from lmablate.objective import OBJECTIVES, Objective
    from lmablate.runs.evaluate_run import check_finished, ready
    from lmablate.runs.load import load_run

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no CUDA GPU: use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
    """Refuse runs that write no text, before their data is opened."""

    path = RunDirectory(run_dir.absolute().parent, run_dir.absolute().name).config_path
    if not access.there(path):
        return  # load_run says it
    cfg = read_config(path)
    if cfg.tokenizer is None:
        raise ConfigError(
            f"{run_dir}: the run was trained on data={cfg.choices.get('data')}, a task whose tokens stand for no text"
        )


def _check_length(cfg: RunConfig, prompt: int, tokens: int) -> None:
    """Refuse a text that a table of positions cannot hold; say where one outgrows what the run was trained on."""
    from lmablate.model import components

    trained = cfg.model.context_length
    if prompt + tokens - 1 <= trained:  # the last token is written and not read
        return
    if not components.target(cfg.posemb, "posemb").bounded:
        print(
            f"note: the prompt has {prompt} tokens, and {tokens} more go beyond the {trained} of the run's training texts",
            file=sys.stderr,
        )
        return
    word = f"posemb={cfg.choices['posemb']} has positions for {trained} tokens"
    if prompt > trained:
        raise ConfigError(f"--prompt: {word}, and the prompt has {prompt}: shorten it by {prompt - trained}")
    raise ConfigError(
        f"--tokens {tokens}: {word}, of which the prompt takes {prompt}: ask for at most {trained - prompt + 1} tokens"
    )


def _text(ids: list[int], data: TokenData) -> str:
    """The text up to the end of its document."""
    return data.decode(ids[: ids.index(data.eot_id)] if data.eot_id in ids else ids)


if __name__ == "__main__":
    sys.exit(main())
