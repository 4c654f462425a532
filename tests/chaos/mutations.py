"""Damaged files: how a file is mutated, and what its loader must then do: refuse it by name, or read what was written."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

WRONG = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "nan",
    [],
    {},
    [[1, [2]]],
    {"a": {"b": 1}},
    "../../x",
    "\u0000",
    "é" * 50,
)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """A file as bad disks, half writes and careless editors leave it."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data)) if data else 0
        kind = rng.choice(("flip", "cut", "drop", "repeat", "noise", "zero", "digit", "insert"))
        if kind == "flip" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + rng.randint(1, 40)]
        elif kind == "repeat":
            data[place:place] = data[place : place + rng.randint(1, 200)]
        elif kind == "noise":
            data[place : place + 8] = rng.randbytes(8)
        elif kind == "zero":
            data[place : place + rng.randint(1, 600)] = bytes(rng.randint(1, 600))
        elif kind == "digit" and (digits := [i for i, byte in enumerate(data) if 48 <= byte <= 57]):
            data[rng.choice(digits)] = rng.choice(b"0123456789")
        else:
            data[place:place] = rng.choice(
                (b"}", b"]", b'"', b"\n", b"- ", b": ", b"{", b"[" * 2000, b"&a [*a]", b"!!python/x ")
            )
    return bytes(data)


def edited(content: Any, rng: random.Random) -> Any:
    """The same tree with another value, a key less or a key more somewhere: valid syntax, other content."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 3)):
        node = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
                node = node[key]
                continue
            kind = rng.choice(("value", "value", "drop", "add"))
            if kind == "drop" and isinstance(node, dict):
                del node[key]
            elif kind == "add" and isinstance(node, dict):
                node[f"new_{rng.randrange(99)}"] = deepcopy(rng.choice(WRONG))
            elif isinstance(node[key], int | float) and not isinstance(node[key], bool) and rng.random() < 0.5:
                node[key] = node[key] * rng.choice((-1, 2, 1.0001)) + rng.choice((0, 1))
            else:
                node[key] = deepcopy(rng.choice(WRONG))
            break
    return content


def mutated_result(raw: bytes, rng: random.Random) -> bytes:
    """A result file, damaged or edited; sometimes one from before there were checksums, then damaged."""
    if rng.random() < 0.5:
        return damaged(raw, rng)
    row = json.loads(raw)
    if rng.random() < 0.3:
        del row["checksum"]
    return json.dumps(edited(row, rng)).encode()


def mutated_config(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged(raw, rng)
    head, _, text = raw.partition(b"\n")
    body = yaml.safe_dump(edited(yaml.safe_load(text), rng), sort_keys=False).encode()
    return body if rng.random() < 0.3 else head + b"\n" + body


def result_problem(path: Path, original: dict[str, Any]) -> str:
    """What is wrong with how load_runs treats the result file `path`, "" if nothing: left out with a warning that names it, or
    the row that was written. A file without a checksum is taken at its word, but may crash nothing."""
    from lmablate.launcher.sweep_manifest import run_status
    from lmablate.results import load_runs
    from lmablate.results.folders import SkippedFile
    from lmablate.runs.run_directory import read_result_file

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load_runs(path.parent.parent)
    run_status(path.parent.parent, path.parent.name)
    if frame.empty:
        named = [w for w in caught if issubclass(w.category, SkippedFile) and str(path) in str(w.message)]
        return "" if named else "left out without a word"
    row, _ = read_result_file(path)
    said = json.loads(path.read_bytes())
    if row is None:
        return "loaded although it is damaged"
    return (
        "" if row.model_dump(exclude_unset=True) == original or "checksum" not in said else "a changed row was loaded"
    )


def config_problem(path: Path, original: Any) -> str:
    """The same for a config.yaml: a ConfigError that names it, or the configuration that was written."""
    from lmablate.core.errors import ConfigError
    from lmablate.runs.config_file import HEAD, read_config

    try:
        cfg = read_config(path)
    except ConfigError as error:
        return "" if str(path) in str(error) else f"an error that does not name it: {error}"
    whole = path.read_bytes().startswith(HEAD.encode())
    return "" if cfg == original or not whole else "a changed configuration was loaded"


def count_problems(
    path: Path, mutate: Callable[[bytes, random.Random], bytes], problem: Callable[[Path], str], times: int, seed: int
) -> list[str]:
    """Mutate one file again and again; what went wrong, with the seed that shows it."""
    raw, found = path.read_bytes(), []
    try:
        for i in range(times):
            path.write_bytes(mutate(raw, random.Random(f"{seed}-{i}")))
            try:
                said = problem(path)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
            if said:
                found.append(f"{path.name}, mutation {seed}-{i}: {said}")
    finally:
        path.write_bytes(raw)
    return found
