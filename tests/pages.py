"""The pages of the README and the site as the tests read them: sentences, links, and blocks of commands."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lmablate.core.paths import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
FENCE = re.compile(r"^(```+|:::+)([^\n]*)\n(.*?)^\1[ ]*$", re.S | re.M)
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


class Block(NamedTuple):
    """A block of shell commands of a page. `not_run`: why no test runs it; `printed`: what the page says it prints."""

    page: str
    commands: tuple[str, ...]
    not_run: str | None
    printed: str

    @property
    def text(self) -> str:
        return "\n".join(self.commands)


@cache
def guides() -> tuple[Path, ...]:
    """Return the README and the pages for users, whose sentences are short and whose commands are tried."""
    own = [DOCS / name for name in ("index.md", "quickstart.md", "tutorial.md", "extend.md", "faq.md", "results.md")]
    return (README, *own, *sorted((DOCS / "guides").glob("*.md")), *sorted((DOCS / "engines").glob("*.md")))


def pages() -> list[Path]:
    """Return every page of the site."""
    return sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Return the targets of a page's links and images, without those in code."""
    return LINK.findall(re.sub(r"`[^`\n]+`", lambda code: "`" * len(code[0]), FENCE.sub("", text)))


def sentences(text: str) -> list[str]:
    """Return the sentences of the running text and lists. Code, tables, headings and figures have none."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n", text), flags=re.S)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", "CODE", text)
    kept = [line for line in text.splitlines() if not line.startswith(("#", "|", "    "))]
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", "\n".join(kept))
    flat = [re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", " ".join(part.split())) for part in parts]
    found = [one for part in flat for one in re.split(r"(?<=[.!?])[*\"')]*\s+(?=[\"'*(]*[A-Z0-9])", part)]
    return [one for one in found if len(one.split()) > 2]


def mean_words(text: str) -> float:
    """Return the mean number of words of a page's sentences."""
    lengths = [len(one.split()) for one in sentences(text)]
    return sum(lengths) / len(lengths)


def blocks(path: Path) -> list[Block]:
    """Return the blocks of shell commands of a page (```bash), with what stands behind them as their output (```text)."""
    text = read(path)
    found = list(FENCE.finditer(text))
    out = []
    for here, after in zip(found, [*found, None][1:], strict=True):
        if here[2].strip() != "bash":
            continue
        reason = NOT_RUN.search(text[: here.start()])
        between = text[here.end() : after.start()] if after else "x"
        printed = after[3] if after and after[2].strip() == "text" and not between.strip() else ""
        out.append(Block(name(path), tuple(_commands(here[3])), reason[1] if reason else None, printed))
    return out


def _commands(text: str) -> list[str]:
    """Return the commands of a block, with continued lines joined and comments left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [re.sub(r"(^|\s\s+)#.*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]
