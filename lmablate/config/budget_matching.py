"""Match the cost of a run to its reference (group ``budget``), and solve the shape of ``aspect_ratio``.

The reference is the same command without the overrides that an ablation changes: the research axes, their settings, and
ARM_KEYS. Overrides for the size of the experiment (model, d_model, n_layers, d_ff, tokenizer, ...) hold for both.
The overrides of ``budget.reference`` are added to it. See docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmablate.budget import COSTS, WHAT, Missed, fits
from lmablate.config.budget_solvers import KNOBS, Candidate, solve_shape
from lmablate.core.axes import AXES
from lmablate.core.errors import ConfigError
from lmablate.schema.run_config import BudgetSettings, RunConfig, RunRequest
from lmablate.training.step_time import seconds_per_step

ARM_KEYS = ("model.head_dim", "model.n_kv_heads", "model.ff_ratio", "model.gated_scale")
# These change neither size nor speed. Without them the runs of a sweep share one reference.
_IDLE = (
    "seed",
    "init_seed",
    "data_seed",
    "results_dir",
    "optim",
    "schedule",
    "diagnostics",
    "hydra/launcher",
    "hydra/sweeper",
    "tune",
    "ladder",
)


def reference_overrides(overrides: Iterable[str], added: Sequence[str] | None) -> list[str]:
    """Return the overrides of the reference of a command.

    `added` are the overrides of ``budget.reference``. An option there replaces every override of its group."""
    replaced = {override.partition("=")[0] for override in added or ()} - {"model"}
    kept = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.partition(".")[0]
        open_heads = key == "model.n_heads" and value in ("null", "")  # only makes sense together with model.head_dim
        if key == "shrink":  # without the preset, only its size remains
            kept.append(f"model={value}")
        dropped = group in AXES or group in ("budget", "preset", "shrink") or key in ARM_KEYS or key.startswith(_IDLE)
        if dropped or open_heads or {group, key} & replaced:
            continue
        kept.append(override)
    return [*kept, *(added or ())]


def meet_budget(
    request: RunRequest, draft: RunConfig, given: dict[str, Any], reference: Callable[[], RunConfig]
) -> RunConfig:
    """Return `draft` with the sizes or steps that the budget and the aspect ratio solve.

    `given` maps the keys of the command line to their values. `reference` composes the run to match. Raises ConfigError."""
    budget, shaped = request.budget, request.aspect_ratio.ratio is not None
    match = budget.match if budget else None
    if budget is None or match is None:
        _refuse_idle(budget)
        return _shaped(request, draft, draft, "params_non_embedding", given) if shaped else draft
    _refuse_solved(request, budget, given)
    if match == "wall_time":
        sized = _shaped(request, draft, draft, "params_non_embedding", given) if shaped else draft
        return _equal_seconds(sized, reference())
    other = reference()
    _check_vocabulary(request, draft, other, match)
    if shaped:
        return _shaped(request, draft, other, match, given)
    assert budget.knob is not None
    run, target = Candidate(request, draft, match), COSTS[match](other)
    knob = KNOBS[budget.knob]
    if not knob.acts(run):
        able = [name for name, k in KNOBS.items() if k.acts(run)]
        advice = f"use budget.knob={' or '.join(able)}" if able else "no knob does"
        raise ConfigError(f"budget={match}: budget.knob={budget.knob} does not change the {WHAT[match]} here: {advice}")
    try:
        solved = knob.solve(run, target)
    except Missed as missed:
        raise ConfigError(_two_nearest(run, budget.knob, target, missed)) from None
    return _with_note(solved, other, f"budget={match}", match, knob.sizes)


def _two_nearest(run: Candidate, knob: str, target: float, missed: Missed) -> str:
    name = KNOBS[knob].sizes[0]
    shown = []
    for n in missed.nearest:
        cost = run.cost(**{name: n}) if missed.costs is None else missed.costs[n]
        shown.append(f"{name}={n} with {cost:,} ({100 * (cost / target - 1):+.1f} %)")
    if len(shown) == 1:
        shown[0] = f"already {shown[0]}"
    others = [f"budget.knob={name}" for name in KNOBS if name != knob and KNOBS[name].acts(run)]
    return (
        f"budget={run.match}: no {name} gives the reference's {target:,} {WHAT[run.match]} within 1 %; the nearest "
        f"{'is' if len(shown) == 1 else 'are'} {' and '.join(shown)}: try {' or '.join([*others, 'a larger model'])}"
    )


def _refuse_idle(budget: BudgetSettings | None) -> None:
    for name in ("knob", "reference"):
        value = getattr(budget, name, None)
        if value is not None:
            raise ConfigError(
                f"budget.{name}={value} has no effect where nothing is matched (budget=none): choose budget=params, flops, ..."
            )


def _refuse_solved(request: RunRequest, budget: BudgetSettings, given: dict[str, Any]) -> None:
    """Raise ConfigError for keys that set what the budget solves."""
    if budget.match == "wall_time":
        if budget.knob is not None:
            raise ConfigError(f"budget.knob={budget.knob}: budget=wall_time solves trainer.steps, and no size")
        return
    if budget.knob is None:
        raise ConfigError(f"budget={budget.match} needs a budget.knob: {', '.join(KNOBS)}")
    if request.aspect_ratio.ratio is not None:
        if given.get("budget.knob") is not None:
            raise ConfigError(
                f"budget.knob={budget.knob}: aspect_ratio={request.choices.get('aspect_ratio')} solves model.d_model and "
                "model.n_layers, and model.d_ff takes up the rest: leave it out"
            )
        return
    for key in KNOBS[budget.knob].refuses:
        if given.get(key) is not None:
            raise ConfigError(
                f"{key}={given[key]} has no effect where budget.knob={budget.knob} solves it: leave it out, or choose another knob "
                f"({', '.join(name for name, knob in KNOBS.items() if key not in knob.refuses)})"
            )


def _check_vocabulary(request: RunRequest, draft: RunConfig, other: RunConfig, match: str) -> None:
    """Raise ConfigError if the match needs a vocabulary size that is only known once the tokenizer is read."""
    if draft.tokenizer is None:  # a task defines its vocabulary
        return
    known = getattr(draft.tokenizer, "vocab_size", None) and getattr(other.tokenizer, "vocab_size", None)
    moves = request.aspect_ratio.ratio is not None or "d_model" in str(request.budget and request.budget.knob)
    if not known and match in ("params", "flops") and (moves or draft.tokenizer != other.tokenizer):
        raise ConfigError(
            f"budget={match} needs the size of the vocabulary, which tokenizer=pretrained tells only when it is read: use "
            "budget=params_non_embedding, or a knob that leaves d_model alone"
        )


def _shaped(request: RunRequest, draft: RunConfig, other: RunConfig, match: str, given: dict[str, Any]) -> RunConfig:
    axis = f"aspect_ratio={request.choices.get('aspect_ratio', '?')}"
    for key in ("model.d_model", "model.n_layers", "model.d_ff"):
        if given.get(key) is not None:
            raise ConfigError(
                f"{axis} solves {key}, and {key}={given[key]} was given too: drop one of them "
                "(the size to match comes from the model group, e.g. model=small)"
            )
    run, target = Candidate(request, draft, match), COSTS[match](other)
    assert request.aspect_ratio.ratio is not None
    solved = solve_shape(run, request.aspect_ratio.ratio, target, axis)
    if not fits(target, run.cost_of(solved)):
        m = solved.model
        raise ConfigError(
            f"{axis}: no shape within 1 % of {target:,} {WHAT[match]}; the nearest is d_model={m.d_model}, n_layers={m.n_layers}, "
            f"d_ff={m.d_ff} with {run.cost_of(solved):,}: choose a larger model or another ratio"
        )
    label = f"{axis} budget={match}" if other is not draft else axis
    return _with_note(solved, other, label, match, ("d_model", "n_layers", "d_ff"))


def _equal_seconds(draft: RunConfig, other: RunConfig) -> RunConfig:
    """Return `draft` with the number of steps that takes as long as the reference's. Both are timed on this machine."""
    mine, its = seconds_per_step(draft), seconds_per_step(other)
    total = its * other.trainer.steps
    steps = max(1, round(total / mine))
    solved = draft.model_copy(update={"trainer": draft.trainer.model_copy(update={"steps": steps})})
    note = (
        f"budget=wall_time: trainer.steps={steps:,} of {1000 * mine:.1f} ms take the {total:,.1f} s that {other.trainer.steps:,} steps "
        f"of {1000 * its:.1f} ms take in the reference{_difference(solved, other)}"
    )
    return solved.model_copy(update={"solved": note if draft.solved is None else f"{draft.solved}; {note}"})


def _with_note(solved: RunConfig, other: RunConfig, label: str, match: str, names: Sequence[str]) -> RunConfig:
    """Return `solved` with a line that says what was solved and how close its cost is."""
    cost, target = COSTS[match](solved), COSTS[match](other)
    sizes = " ".join(f"{name}={getattr(solved.model, name)}" for name in names)
    off = f"{100 * (cost / target - 1):+.2f} %" if cost != target else "exactly"
    note = f"{label}: {sizes} has {cost:,} {WHAT[match]}, {off} of the {target:,} of the reference{_difference(solved, other)}"
    return solved.model_copy(update={"solved": note.replace("exactly of the", "exactly the")})


def _difference(solved: RunConfig, other: RunConfig) -> str:
    """Return the options and sizes of the reference that `solved` does not have, as text."""
    parts = [f"{axis}={other.choices[axis]}" for axis in AXES if other.choices.get(axis) != solved.choices.get(axis)]
    mine, its = solved.model.model_dump(), other.model.model_dump()
    parts += [f"{key}={its[key]}" for key in its if its[key] != mine[key]]
    return f" ({' '.join(parts)})" if parts else ", which is this very run"
