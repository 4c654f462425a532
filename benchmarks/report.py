"""``python benchmarks/report.py``: docs/benchmarks.md and its figure, from what stands in benchmarks/out/."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT, DOCS = ROOT / "benchmarks" / "out", ROOT / "docs"

from benchmarks import bars, tables  # noqa: E402
from benchmarks.conclusions import RATES  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402

Results = dict[str, dict[str, Any]]
Found = dict[str, Any] | None

HOW = """# Benchmarks

Written by `make bench`; do not edit. Every figure is a ratio measured inside one run on one machine; seconds and tokens/s
are context, and change from machine to machine.

## How it is measured

- **One step of each in turn**, A, B, C, A, B, C, all contenders in one process, on one thread, timed by the process's own
  processor time, which other programs on the machine do not move. Ratios are of medians; brackets hold the 95 % bootstrap
  interval over rounds.
- **The same work**: the same rows of tokens, fused AdamW with the same settings, gradient norm clipped at 1, no dropout.
  Width, depth, heads and vocabulary are equal, and the FFN's width is solved so that all parameter counts agree within 1 %.
- **Our default** is what `python -m lmablate.train` does without options: bf16 in the branches where the processor
  multiplies bf16 faster, residual stream, norms and loss in fp32, eager ("lmablate, default"); with `runtime.compile=true` the model is
  compiled ("lmablate, bf16 compiled"). Other libraries' default on a
  CPU is fp32; rows of equal precision, eager and compiled, stand beside it. "(best)" marks the setting a library documents as its fastest.
- **Share of the matmul peak**: the FLOPs of a step's matrix products over those of `torch.matmul` (1024 x 1024) in the
  same precision, timed before and after in the same process.
- **Start-up, compilation and memory** are of fresh processes, one contender each: processor seconds from nothing to the
  end of the first optimizer step, and the largest resident set.
- In one process all share one memory allocator, whose settings are the process's: where ours help, they help everybody.
  The tables "each in a process of its own" take that away; steps still come in turn.
"""


def read() -> tuple[Results, Results, Found, Found, Found, Found]:
    """(one process, apart, gang, sweep, profile, conclusions)."""

    def load(name: str) -> dict[str, Any] | None:
        path = OUT / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    singles = {name: found for name in SHAPES if (found := load(f"single_{name}"))}
    apart = {name: found for name in SHAPES if (found := load(f"apart_{name}"))}
    gangs = [found for name in SHAPES if (found := load(f"gang_{name}"))]
    gang = {"machine": gangs[-1]["machine"], "results": [one for g in gangs for one in g["results"]]} if gangs else None
    return singles, apart, gang, load("sweep"), load("profile"), load("conclusions")


def page(
    singles: Mapping[str, Mapping[str, Any]],
    apart: Mapping[str, Mapping[str, Any]],
    gang: Mapping[str, Any] | None,
    sweep: Mapping[str, Any] | None,
    profiles: Mapping[str, Any] | None = None,
    conclusions: Mapping[str, Any] | None = None,
    notes: str = "",
    diagnostics: Mapping[str, Any] | None = None,
    quality: Mapping[str, Any] | None = None,
) -> str:
    """docs/benchmarks.md."""
    parts = [
        HOW,
        _machine(singles, apart, gang, sweep),
        "![Speed over other libraries, and of gangs](figures/benchmarks.png)",
    ]
    parts += [
        "## What we ask, and what was measured",
        "In one process:",
        bars.bars_table(list(bars.single_bars(singles))),
    ]
    if apart:
        asked = [bar for bar in bars.single_bars(apart) if bar.value is not None]
        parts += ["Each in a process of its own:", bars.bars_table(asked)]
    parts += [
        "Gangs and sweeps:",
        bars.bars_table([*bars.gang_bars(gang), *bars.sweep_bars(sweep), *bars.conclusion_bars(conclusions)]),
    ]
    parts += ["The loss at equal size, text and tokens:", bars.bars_table(list(bars.quality_bars(quality)))]
    if notes:
        parts.append(notes)
    if profiles:
        parts.append("## Where a step's time goes")
        parts.append("Under a profiler, which slows small operations: for shares, not for seconds.")
        for name, profile in profiles.items():
            parts += [f"{name}:", tables.profile_table(profile)]
    parts.append("## One run")
    for name, shape in SHAPES.items():
        parts.append(f"### {name}")
        result = singles.get(name)
        if result is None or "rows" not in result:
            reason = (result or {}).get("not_measured")
            parts.append(f"{shape.note}: {tables.NONE}{f' ({reason})' if reason else ''}.")
        else:
            parts += [tables.caption(result), tables.single_table(result)]
            if any(row.get("alone") for row in result["rows"]):
                parts.append(tables.alone_table(result))
        if name in apart and "rows" in apart[name]:
            parts += ["Each in a process of its own:", tables.single_table(apart[name])]
    parts += ["## Gangs: K runs as one program", _gang(gang)]
    parts += ["## A sweep of 16 runs", _sweep(sweep)]
    parts += ["## Conclusions an hour", _conclusions(conclusions)]
    parts += ["## The loss at equal size, text and tokens", quality_section(quality)]
    if diagnostics:
        parts += ["## Diagnostics", _diagnostics(diagnostics)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(*results: Any) -> str:
    singles, apart, gang, sweep = results
    all_of = [r for group in (singles, apart) for r in group.values() if "machine" in r]
    all_of += [r for r in (gang, sweep) if r]
    seen = {}
    for result in all_of:
        about = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        seen[(about["processor"], about["date"])] = f"Python {about['python']}, {versions}"
    lines = [f"- {processor}, {date}: {versions}." for (processor, date), versions in sorted(seen.items())]
    return "## The machine\n\n" + ("\n".join(lines) or tables.NONE)


def _gang(gang: Mapping[str, Any] | None) -> str:
    if not gang:
        return f"{tables.NONE}."
    parts = []
    for one in gang["results"]:
        parts += [f"### {one['config']}", tables.gang_table(one)]
        for check in one["equality"]:
            same = (
                "equal to the bit"
                if check["bitwise"]
                else f"within {check['ulp']:.0f} ulp ({check['relative']:.1e} of the largest weight)"
            )
            parts.append(f"After {check['steps']} steps, weights of members against solo runs: {same}.")
        for plan in one["plans"]:
            kind = "compiled" if plan["compiled"] else "eager"
            parts.append(f"The planner chose K = {plan['size']} for {kind} runs: {plan['why']}.")
    return "\n\n".join(parts)


def _sweep(sweep: Mapping[str, Any] | None) -> str:
    if not sweep:
        return f"{tables.NONE}."
    about = sweep["machine"]
    text = (
        f"2 variants of the FFN x {sweep['rows'][0]['runs'] // 2} seeds at the shape of C1, {sweep['tokens']:,} tokens a run, on "
        f"{about['cores']} cores; the peer's script and the basic launcher use {sweep['threads']} threads a run. Load at the start "
        f"{about['load']}."
    )
    return f"{text}\n\n{tables.sweep_table(sweep)}"


def _conclusions(found: Mapping[str, Any] | None) -> str:
    if not found:
        return f"{tables.NONE}."
    parts = [
        f"How long until the difference between RoPE and no positions is known to ± {100 * found['width']:g} % of the loss with "
        "95 % confidence. Ours: one command on all cores, both arms with the same seeds, differences of pairs; several budgets "
        "are the decays of one trunk. Plain practice: fp32, one run after the other with "
        f"{found['threads']} threads, a seed of its own for every run, difference of two means; a run for every budget.",
        f"The last column is reckoned from the others: the same where the learning rate of each arm is chosen among {RATES} too, by one "
        "run a rate on a seed of its own (ours), or by a grid that trains every seed at every rate.",
    ]
    for name, question in found["questions"].items():
        mine, plain = (question["ways"][way] for way in ("ours", "plain"))
        speed = plain["wall_seconds_a_run"] / mine["wall_seconds_a_run"]
        spread = (plain["sd"] / mine["sd"]) ** 2
        gain = mine["conclusions_an_hour"] / plain["conclusions_an_hour"]
        parts += [
            f"**{name}**: {question['what']}. The factor of {gain:.1f} is {speed:.1f} (runs an hour) times "
            f"{plain['runs_an_arm'] / mine['runs_an_arm']:.1f} (runs a conclusion: pairs have {spread:.1f} times less variance).",
            tables.conclusions_table(question["ways"]),
        ]
    return "\n\n".join(parts)


def quality_section(found: Mapping[str, Any] | None) -> str:
    """How low each side ends."""
    if not found:
        return f"{tables.NONE}."
    text = (
        f"Nats per token of the same validation text ({found['vocab']:,} tokens of BPE, `data=sotu`) after {found['steps']:,} steps, "
        f"{found['tokens']:,} tokens or {found['tokens'] / found['train_tokens']:.2f} epochs; width {found['d_model']}. Every model is "
        "measured by our evaluation in fp32. Each side takes the best of five rates on one seed, and is trained again from fresh "
        "seeds, whose mean and range stand last. nanoGPT trains by its own train.py at the settings of its README for a CPU, the "
        "Llama of transformers by our trainer from its own initial weights; both in fp32, ours with products in bf16."
    )
    return f"{text}\n\n{tables.quality_table(found)}"


def _diagnostics(found: Mapping[str, Any]) -> str:
    """What looking into the model costs."""
    parts = [
        "Two runs of a shape, eager, one of which takes all measurements after every step, in turns of one step; processor "
        "seconds. Below: training with a measurement at the default cadence over training without. The bar is 1.05."
    ]
    for one in found["results"]:
        (value, low, high), speed = one["cost"], one["tokens_per_second"]
        parts.append(
            f"- **{one['config']}**, `{one['option']}`, a measurement every {one['every']} steps: {value:.3f} [{low:.3f}, {high:.3f}] "
            f"({speed['with']:,.0f} tokens/s with, {speed['without']:,.0f} without; load {one['machine']['load']})."
        )
    return "\n\n".join([parts[0], "\n".join(parts[1:])])


def main() -> None:
    from benchmarks.figure import draw, has_something

    singles, apart, gang, sweep, profiles, conclusions = read()
    notes = (ROOT / "benchmarks" / "notes.md").read_text()
    measured = OUT / "diagnostics.json"
    diagnostics = json.loads(measured.read_text()) if measured.exists() else None
    ends = OUT / "quality.json"
    quality = json.loads(ends.read_text()) if ends.exists() else None
    text = page(singles, apart, gang, sweep, profiles, conclusions, notes, diagnostics, quality)
    (DOCS / "benchmarks.md").write_text(text)
    if has_something(singles):
        draw(singles, gang, DOCS / "figures" / "benchmarks")
    print(DOCS / "benchmarks.md")


if __name__ == "__main__":
    main()
