"""Arguments that several commands on finished runs share."""

from __future__ import annotations

from argparse import ArgumentParser

from lmablate.core.errors import ConfigError


def add_text(parser: ArgumentParser) -> None:
    """Add the arguments that name a text: ``--data`` and ``--text-field``."""
    files = "a file or a pattern in quotes: text, JSONL, Parquet or Arrow (default: validation text)"
    parser.add_argument("--data", metavar="FILES", help=files)
    field = "of rows, where a dot leads into an object (default: %(default)s)"
    parser.add_argument("--text-field", default="text", metavar="NAME", help=field)


def add_device(parser: ArgumentParser) -> None:
    """Add the argument that chooses the device (`device_of`)."""
    devices = ("auto", "cpu", "cuda")
    parser.add_argument("--device", choices=devices, default="auto", help="default: a GPU where there is one")


def add_threads(parser: ArgumentParser) -> None:
    """Add the argument for the threads of the processor."""
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor (default: %(default)s)")


def add_trust(parser: ArgumentParser) -> None:
    """Add the argument that opens packages of the user's (front_door.trust_packages)."""
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="a package with parts of your own"
    )


def device_of(choice: str) -> str:
    """Return ``cpu`` or ``cuda`` for a value of ``--device``. Raises ConfigError if there is no GPU."""
    import torch

    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise ConfigError("--device cuda, but torch sees no CUDA GPU: use --device cpu")
    return choice if choice != "auto" else "cuda" if there else "cpu"
