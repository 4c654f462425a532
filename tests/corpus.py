"""A small text on disk, and the command line that trains a small model on it."""

import contextlib
import importlib
import io
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

QUICK = (
    "data=files", "tokenizer=bytes", "model.d_model=32", "model.n_layers=2", "model.context_length=32", "trainer.batch_size=4",
    "trainer.steps=12", "runtime.evaluations=3", "runtime.log_every=3", "data.val_bytes=400", "runtime.wandb=disabled",
)  # fmt: skip


def write_corpus(folder: Path, seed: int = 0, documents: int = 12) -> Path:
    """Text files with something to learn; returns the folder."""
    rng = random.Random(seed)
    words = "in the beginning was a word and it said let there be light over dark waters".split()
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        text = " ".join(rng.choice(words) for _ in range(120))
        (folder / f"doc{i:02}.txt").write_text(text)
    return folder


def command(
    module: str, *words: str, cwd: Path | None = None, env: dict | None = None, timeout: float = 120
) -> subprocess.CompletedProcess:
    """Run ``python -m module words`` as a user would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=timeout,
        check=False,
    )


def here(module: str, *words: str, cwd: Path | None = None, env: dict | None = None) -> subprocess.CompletedProcess:
    """What `command` gives, from this process: for tests of what a command does and not of how it starts."""
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    notes, log = logging.StreamHandler(err), logging.getLogger("lmablate")
    log.addHandler(notes)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(cwd or "."),
            mock.patch.dict(os.environ, env or {}),
        ):
            code = main(list(words))
    finally:
        log.removeHandler(notes)
    return subprocess.CompletedProcess([module, *words], code, out.getvalue(), err.getvalue())
