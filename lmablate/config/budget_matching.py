"""Group ``budget``: sizes (or steps) at which a run costs what its reference costs; and the shapes of ``aspect_ratio``.

The reference is the same command without its words for what an ablation changes: the research axes and their settings,
and the keys of ARM. Words that say how large the experiment is (model, d_model, n_layers, d_ff, tokenizer, ...) hold for
both. The words of ``budget.reference`` are added to it. See docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmablate.budget import COSTS, WHAT, Missed, fits
from lmablate.config.budget_solvers import KNOBS, Arm, solve_shape
from lmablate.core.axes import AXES
from lmablate.core.errors import ConfigError
from lmablate.schema.run_config import BudgetSettings, RunConfig, RunRequest
from lmablate.training.step_time import seconds_per_step

ARM = ("model.head_dim", "model.n_kv_heads", "model.ff_ratio", "model.gated_scale")
# What changes no size and no speed, left out so that the runs of a sweep share one reference.
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
)


def reference_words(words: Iterable[str], added: Sequence[str] | None) -> list[str]:
    """The override words of the reference of a command. An added option of a group replaces what was said of the group."""
    replaced = {word.partition("=")[0] for word in added or ()} - {"model"}
    kept = []
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        group = key.partition(".")[0]
        open_heads = key == "model.n_heads" and value in ("null", "")  # stands or falls with model.head_dim
        if key == "shrink":  # what is left without the preset is its size
            kept.append(f"model={value}")
        dropped = group in AXES or group in ("budget", "preset", "shrink") or key in ARM or key.startswith(_IDLE)
        if dropped or open_heads or {group, key} & replaced:
            continue
        kept.append(word)
    return [*kept, *(added or ())]


def meet_budget(
    request: RunRequest, draft: RunConfig, given: dict[str, Any], reference: Callable[[], RunConfig]
) -> RunConfig:
    """`draft` with the sizes or steps that the budget and the aspect ratio solve. Raises ConfigError.

    `reference` composes the run whose cost is to be met.
    """
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
    arm, target = Arm(request, draft, match), COSTS[match](other)
    knob = KNOBS[budget.knob]
    if not knob.acts(arm):
        able = [name for name, k in KNOBS.items() if k.acts(arm)]
        advice = f"use budget.knob={' or '.join(able)}" if able else "no knob does"
        raise ConfigError(f"budget={match}: budget.knob={budget.knob} does not change the {WHAT[match]} here: {advice}")
    try:
        solved = knob.solve(arm, target)
    except Missed as missed:
        raise ConfigError(_two_nearest(arm, budget.knob, target, missed)) from None
    return _told(solved, other, f"budget={match}", match, knob.sizes)


def _two_nearest(arm: Arm, knob: str, target: float, missed: Missed) -> str:
    name = KNOBS[knob].sizes[0]
    shown = []
    for n in missed.nearest:
        cost = arm.cost(**{name: n}) if missed.costs is None else missed.costs[n]
        shown.append(f"{name}={n} with {cost:,} ({100 * (cost / target - 1):+.1f} %)")
    if len(shown) == 1:
        shown[0] = f"already {shown[0]}"
    others = [f"budget.knob={name}" for name in KNOBS if name != knob and KNOBS[name].acts(arm)]
    return (
        f"budget={arm.match}: no {name} gives the reference's {target:,} {WHAT[arm.match]} within 1 %; the nearest "
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
    """Words that set what the budget solves."""
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
    """A saved tokenizer tells its size only when it is read, which is later."""
    if draft.tokenizer is None:  # a task says how many tokens it has
        return
    known = getattr(draft.tokenizer, "vocab_size", None) and getattr(other.tokenizer, "vocab_size", None)
    moves = request.aspect_ratio.ratio is not None or "d_model" in str(request.budget and request.budget.knob)
    if not known and match in ("params", "flops") and (moves or draft.tokenizer != other.tokenizer):
        raise ConfigError(
            f"budget={match} needs the size of the vocabulary, which tokenizer=pretrained tells only when it is read: use "
            "budget=params_non_embedding, or a knob that leaves d_model alone"
        )


def _shaped(request: RunRequest, draft: RunConfig, other: RunConfig, match: str, given: dict[str, Any]) -> RunConfig:
    word = f"aspect_ratio={request.choices.get('aspect_ratio', '?')}"
    for key in ("model.d_model", "model.n_layers", "model.d_ff"):
        if given.get(key) is not None:
            raise ConfigError(
                f"{word} solves {key}, and {key}={given[key]} was given too: drop one of them "
                "(the size to match comes from the model group, e.g. model=small)"
            )
    arm, target = Arm(request, draft, match), COSTS[match](other)
    assert request.aspect_ratio.ratio is not None
    solved = solve_shape(arm, request.aspect_ratio.ratio, target, word)
    if not fits(target, arm.cost_of(solved)):
        m = solved.model
        raise ConfigError(
            f"{word}: no shape within 1 % of {target:,} {WHAT[match]}; the nearest is d_model={m.d_model}, n_layers={m.n_layers}, "
            f"d_ff={m.d_ff} with {arm.cost_of(solved):,}: choose a larger model or another ratio"
        )
    asked = f"{word} budget={match}" if other is not draft else word
    return _told(solved, other, asked, match, ("d_model", "n_layers", "d_ff"))


def _equal_seconds(draft: RunConfig, other: RunConfig) -> RunConfig:
    """The steps that take as long as the reference's do, both measured on this machine."""

    mine, its = seconds_per_step(draft), seconds_per_step(other)
    total = its * other.trainer.steps
    steps = max(1, round(total / mine))
    solved = draft.model_copy(update={"trainer": draft.trainer.model_copy(update={"steps": steps})})
    note = (
        f"budget=wall_time: trainer.steps={steps:,} of {1000 * mine:.1f} ms take the {total:,.1f} s that {other.trainer.steps:,} steps "
        f"of {1000 * its:.1f} ms take in the reference{_difference(solved, other)}"
    )
    return solved.model_copy(update={"solved": note if draft.solved is None else f"{draft.solved}; {note}"})


def _told(solved: RunConfig, other: RunConfig, asked: str, match: str, names: Sequence[str]) -> RunConfig:
    """`solved` with one line that says what was solved."""
    cost, target = COSTS[match](solved), COSTS[match](other)
    sizes = " ".join(f"{name}={getattr(solved.model, name)}" for name in names)
    off = f"{100 * (cost / target - 1):+.2f} %" if cost != target else "exactly"
    note = f"{asked}: {sizes} has {cost:,} {WHAT[match]}, {off} of the {target:,} of the reference{_difference(solved, other)}"
    return solved.model_copy(update={"solved": note.replace("exactly of the", "exactly the")})


def _difference(solved: RunConfig, other: RunConfig) -> str:
    """What the reference has and `solved` has not, in words."""
    words = [f"{axis}={other.choices[axis]}" for axis in AXES if other.choices.get(axis) != solved.choices.get(axis)]
    mine, its = solved.model.model_dump(), other.model.model_dump()
    words += [f"{key}={its[key]}" for key in its if its[key] != mine[key]]
    return f" ({' '.join(words)})" if words else ", which is this very run"
