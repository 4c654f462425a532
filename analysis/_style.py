"""One look for all figures: colours, type, number formats, and saving. Nothing here touches pyplot's global state."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, PngImagePlugin

from lmablate.core.errors import ConfigError, exit_on_config_error
from lmablate.core.files import make_folder, write_together
from lmablate.core.paths import given_path

if TYPE_CHECKING:
    import pandas as pd

INK, MUTED, GRID, PAPER = "#1b1f24", "#667079", "#e4e7eb", "#ffffff"
# Six hues of Okabe and Ito (2008) and two darker ones, told apart under all common forms of colour blindness; beyond
# eight arms line style and marker go on counting, so that 24 arms still differ.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#8C8C2B")
LINES = ("-", (0, (4, 1.6)), (0, (1, 1.4)))
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
WIDTH = 10.0  # inches: a page's width at 100 dots an inch
BETWEEN = "  ·  "  # the parts of a note

_RC: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "lmablate",  # the same figure gives the same file
}


class Arm(NamedTuple):
    """How an arm is drawn, the same in every figure."""

    color: str
    line: str | tuple[float, tuple[float, ...]]
    marker: str


@contextmanager
def style() -> Iterator[None]:
    """The look, for figures made inside the block: what the user's matplotlibrc says has no part in it."""
    known = set(font_manager.fontManager.get_font_names())
    fonts = [name for name in ("Helvetica Neue", "Arial", "Liberation Sans") if name in known]
    settings = {**_RC, "font.family": "sans-serif", "font.sans-serif": [*fonts[:1], "DejaVu Sans"]}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)  # type: ignore[arg-type]  # its stubs list every key
        yield


def arm_styles(arms: Iterable[str]) -> dict[str, Arm]:
    """A style for each arm. It hangs on the set of names alone, so every figure of the same runs agrees."""
    styles = {}
    for i, arm in enumerate(sorted(set(arms))):
        hue, turn = i % len(PALETTE), i // len(PALETTE)
        styles[arm] = Arm(PALETTE[hue], LINES[turn % len(LINES)], MARKERS[(hue + turn) % len(MARKERS)])
    return styles


def arm_colours(runs: pd.DataFrame) -> dict[str, str]:
    """The colour of each arm of `runs` (with_arms) in all figures, e.g. as the palette of a seaborn plot."""
    return {arm: look.color for arm, look in arm_styles(runs["arm"]).items()}


def new_figure(width: float = WIDTH, height: float = 4.6) -> Figure:
    """An empty figure, in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03))


def entitle(figure: Figure, title: str, note: str) -> None:
    """A title at the top left, and what the figure rests on at the bottom left."""
    if title:
        lines = textwrap.fill(title, round(7.4 * figure.get_figwidth()), break_long_words=False)
        figure.suptitle(lines, x=0.008, ha="left", fontsize=12.5, fontweight="bold")
    if note:
        figure.supxlabel(
            _in_lines(note, round(13.5 * figure.get_figwidth())), x=0.008, ha="left", fontsize=8.5, color=MUTED
        )


def _in_lines(note: str, width: int, between: str = BETWEEN) -> str:
    """The parts of a note in lines of at most `width` characters, where no part is longer."""
    lines = [""]
    for part in note.split(between):
        longer = lines[-1] + between * bool(lines[-1]) + part
        lines = [*lines[:-1], longer] if len(longer) <= width or not lines[-1] else [*lines, part]
    return "\n".join(lines)


def folded_names(names: Iterable[str]) -> list[str]:
    """The names of rows, those that would leave the axes no room in lines of 60 characters."""
    return [_in_lines(name, 60, " · ") for name in names]


def rows_height(names: Sequence[str]) -> float:
    """The height in inches of at least two rows with these names (`folded_names`)."""
    return (0.16 + 0.14 * max((name.count("\n") + 1 for name in names), default=1)) * max(2, len(names))


def message(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    with style():
        figure = new_figure(height=1.6)
        figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=11, wrap=True)
    return figure


def side_column(axes: Axes, header: str, rows: Sequence[tuple[float, str, str]], right: float = 62) -> None:
    """Right of the axes, a column of right-aligned figures under a header, up to `right` points from them; `rows` are (y, text,
    colour)."""
    for y, text, color in rows:
        axes.annotate(
            text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(right, 0), textcoords="offset points",
            va="center_baseline", ha="right", fontsize=9, color=color,
        )  # fmt: skip
    axes.annotate(
        header, (1, 1), xycoords="axes fraction", xytext=(right, 9), textcoords="offset points", ha="right", fontsize=9,
        color=MUTED,
    )  # fmt: skip


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A share in per cent: ``0.2 %``, ``13 %``; never less than 0.1 %."""
    return f"{max(100 * fraction, 0.1):.1f} %" if fraction < 0.095 else f"{100 * fraction:.0f} %"


def count(value: float) -> str:
    """A count in three digits: ``820k``, ``1.31M``, ``12.4B``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def save(figure: Figure, stem: Path, source: str = "") -> list[Path]:
    """Write ``stem.png`` (200 dots an inch, 256 colours: a third of the bytes) and ``stem.svg``; returns both paths. `source`: what the
    figure was drawn from, for their metadata."""
    of = {"Source": source} if source else {}
    how: dict[str, dict[str, Any]] = {
        "png": {"dpi": 200, "metadata": {"Software": "lmablate", **of}, "pil_kwargs": {"compress_level": 1}},
        "svg": {"metadata": {"Date": None, "Creator": "lmablate", **of}},
    }
    files = {}
    os.environ.pop("SOURCE_DATE_EPOCH", None)  # figures carry no date, and matplotlib stops at one that is no number
    with style():
        for ending, settings in how.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, **settings)
            files[stem.with_name(f"{stem.name}.{ending}")] = (
                _few_colours(buffer) if ending == "png" else buffer.getvalue()
            )
    write_together(files)
    return list(files)


def _few_colours(png: io.BytesIO) -> bytes:
    """Return a PNG image with a palette, its text and its dots an inch kept."""
    image, out = Image.open(png), io.BytesIO()
    info = PngImagePlugin.PngInfo()
    for key in ("Software", "Source"):
        if key in image.info:
            info.add_text(key, image.info[key])
    few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(out, "png", optimize=True, pnginfo=info, dpi=image.info["dpi"])
    return out.getvalue()


def parser_of(purpose: str | None) -> argparse.ArgumentParser:
    """Make the parser of an analysis, which calls itself what a user types."""
    return argparse.ArgumentParser(prog=f"python -m lmablate.analysis.{Path(sys.argv[0]).stem}", description=purpose)


@exit_on_config_error
def run(draw: Callable[[str], Figure], purpose: str, argv: Sequence[str] | None = None) -> int:
    """The command line of an analysis: ``RESULTS_DIR --out FILE`` writes FILE as PNG and as SVG; returns the exit code."""
    parser = parser_of(purpose)
    parser.add_argument("results_dir", type=given_path)
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help="writes FILE.png and FILE.svg")
    words = parser.parse_args(argv)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    figure = draw(str(words.results_dir))
    make_folder(words.out.parent)
    stem = words.out.with_suffix("") if words.out.suffix in (".png", ".svg") else words.out
    print("\n".join(map(str, save(figure, stem))))
    return 0


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file that has at least `columns`. Raises ConfigError."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise ConfigError(f"{path}: not a table ({str(error).strip()})") from None
    if missing := [name for name in columns if name not in table]:
        raise ConfigError(f"{path}: has no column {', '.join(missing)}: give a folder that the measurement wrote")
    return table
