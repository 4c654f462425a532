"""A sweep of 16 runs (2 variants x 8 seeds, the shape of C1, 200k tokens each), end to end, against other ways to run it.

``python benchmarks/sweep.py [--quick] [--ways ours,gang,warm,peer,basic]`` writes benchmarks/out/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "out"

from benchmarks import measure  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402

SHAPE = SHAPES["C1"]
TOKENS = 200_000
VARIANTS = {"swiglu": "silu", "geglu": "gelu"}  # our word, and the activation of transformers' gated FFN
WAYS = {
    "ours": "lmablate, defaults",
    "gang": "lmablate, hydra/launcher=gang",
    "warm": "lmablate, defaults, its graphs compiled here before",
    "peer": "shell loop over a script with transformers Llama",
    "basic": "lmablate fp32 eager under Hydra's basic launcher",
}


def words(seeds: int, tokens: int, results: Path) -> list[str]:
    """The sweep in the words of our command line."""
    return [f"activation={','.join(VARIANTS)}", f"seed=range({seeds})", *run_words(tokens, results)]


def run_words(tokens: int, results: Path) -> list[str]:
    """Those that all runs share."""
    return [
        *SHAPE.overrides(),
        "data=kjv",
        "tokenizer=bytes",
        f"trainer.tokens={tokens}",
        "runtime.evaluations=1",
        "runtime.wandb=disabled",
        "runtime.progress=off",
        f"results_dir={results}",
    ]


def write_tokens(path: Path) -> int:
    """The text of the sweep for the peer's script; returns its vocabulary."""
    import numpy as np

    from lmablate.config import compose
    from lmablate.runs.prepared import load_data

    data = load_data(compose([*SHAPE.overrides(), "data=kjv", "tokenizer=bytes"]))
    np.savez(path, train=np.asarray(data.train), val=data.val)
    return data.vocab_size


def shell(script: str, folder: Path, threads: int, cache: Path | None = None) -> dict[str, float]:
    """Run a shell script; its wall and processor seconds. `cache`: lmablate's folder for what it can make again."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if cache is not None:
        environment["LMABLATE_CACHE"] = str(cache)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    log = folder / "log.txt"
    with log.open("w") as out:
        code = subprocess.run(["bash", "-ec", script], stdout=out, stderr=out, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"exit code {code}:\n{log.read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": time.perf_counter() - began, "processor_seconds": spent}


def fresh_cache(folder: Path) -> Path:
    """A cache with the text as tokens and what is known of the machine, and nothing compiled."""
    from lmablate.core.paths import cache_dir

    shutil.copytree(cache_dir(), folder / "cache", ignore=shutil.ignore_patterns("inductor"))
    return folder / "cache"


def last_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "history.jsonl").read_text().splitlines()[-1])


def inside(run: Path) -> float:
    """Seconds from the beginning of a run of ours to its row, both written as files."""
    return (run / "result.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime


def quoted(parts: list[str]) -> str:
    import shlex

    return " ".join(shlex.quote(part) for part in parts)


def run_way(way: str, seeds: int, tokens: int, threads: int, text: Path, vocab: int) -> dict[str, Any]:
    """The whole sweep one way, in a fresh results folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep = words(seeds, tokens, folder / "results")
        cache = fresh_cache(folder)
        fp32 = ["trainer.precision=fp32", f"runtime.threads={threads}"]
        if way == "peer":
            steps = round(tokens / SHAPE.tokens_per_step)
            train = f"{sys.executable} {ROOT}/benchmarks/peer_train.py --tokens {text} --vocab {vocab} --steps {steps}"
            script = "\n".join(
                f"for seed in $(seq 0 {seeds - 1}); do {train} --threads {threads} --activation {theirs} --seed $seed "
                f"--out {folder}/results/{theirs}-$seed; done"
                for theirs in VARIANTS.values()
            )
        elif way == "basic":
            program = [sys.executable, f"{ROOT}/benchmarks/hydra_basic.py", "-m", "hydra/launcher=basic"]
            script = quoted([*program, *sweep, *fp32])
        else:
            program = [
                sys.executable,
                "-m",
                "lmablate.train",
                "-m",
                *(["hydra/launcher=gang"] if way == "gang" else []),
            ]
            script = quoted([*program, *sweep])
            if (
                way == "warm"
            ):  # two steps of each graph; the sweep then finds the compiler's cache and chooses by itself
                once = ["runtime.compile=true", "seed=1000", "trainer.steps=2", "trainer.tokens=null"]
                others = [word for word in sweep if not word.startswith(("seed=", "trainer.tokens=", "results_dir="))]
                shell(quoted([*program, *others, *once, f"results_dir={folder}/before"]), folder, 1, cache)
        spent = shell(script, folder, threads if way in ("peer", "basic") else 1, cache)
        runs = sorted(path.parent for path in folder.glob("results/*/result.json"))
        rows = [json.loads((run / "result.json").read_text()) for run in runs]
        training = sum(
            row.get("train_seconds") or last_record(run)["seconds"] for row, run in zip(rows, runs, strict=True)
        )
        within = sum(inside(run) for run in runs) if way in ("ours", "warm") else None
    assert len(rows) == 2 * seeds, f"{way}: {len(rows)} results"
    losses = [row["val_loss"] for row in rows]
    compiled = sum(bool(row.get("numerics", {}).get("compiled")) for row in rows)
    at_once = 1 if way in ("peer", "basic") else (os.cpu_count() or 1)
    return {
        "way": WAYS[way],
        "runs": len(rows),
        **spent,
        "train_seconds": training,
        # members of a gang share their steps' seconds, so the sum would count them several times
        "outside_share": None if way == "gang" else max(0.0, 1 - training / at_once / spent["wall_seconds"]),
        # imports, configurations, processes and compilation: all that passes before a run begins and after the last
        "start_share": None if within is None else (at_once * spent["wall_seconds"] - within) / training,
        "compiled": compiled,
        "mean_val_loss": sum(losses) / len(losses),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="4 runs of 50k tokens: start-up weighs more than it should"
    )
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the peer's script and of basic")
    given = parser.parse_args()
    seeds, tokens = (2, 50_000) if given.quick else (8, TOKENS)
    OUT.mkdir(exist_ok=True)
    about = measure.machine("cpu")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "tokens.npz"
        vocab = write_tokens(text)
        rows = []
        for way in given.ways.split(","):
            rows.append(run_way(way, seeds, tokens, given.threads, text, vocab))
            print(rows[-1], flush=True)
    result = {"machine": about, "tokens": tokens, "threads": given.threads, "rows": rows}
    (OUT / "sweep.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
