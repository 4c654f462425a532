"""The configuration reference: every group, option and key, from ``conf/``, the schema and the signatures of the parts.

``python tools/configuration.py docs/reference/configuration.md`` writes the page. Meanings are the comments in ``conf/``; limits are
those of ``tests/limits_table.py``, which a test tries one by one.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from configuration_types import field_types, part_types

from lmablate.core.axes import AXES, default_choices, options
from lmablate.core.console import markdown_table
from lmablate.core.paths import CONF_DIR, ROOT
from lmablate.schema.run_config import RunRequest
from lmablate.sweeper.optuna_space import SearchSettings
from lmablate.sweeper.settings import StudySettings, TuneSettings

HEAD = """# Configuration reference

Every key of a command line: its type, its default, what it does, and where it is refused. `null` means "not set". Written by
`python tools/configuration.py docs/reference/configuration.md`; do not edit.

`python -m lmablate.train --cfg job` prints all keys of a run with their values. A value of another type is refused before anything is
trained, and so is a key that the chosen option does not have. The column *limits* names values that have no effect, and the
command that is refused for them.

"""
OTHER_GROUPS = (
    "model",
    "data",
    "tokenizer",
    "objective",
    "optim",
    "schedule",
    "trainer",
    "budget",
    "runtime",
    "diagnostics",
)
SIZE_GROUPS = ("scale", "ladder", "shrink", "preset")
TOP = ("seed", "init_seed", "data_seed", "results_dir")
SET_BY_US = {
    "schema_version": "the format of config.yaml",
    "choices": "the option of each group",
    "overrides": "the overrides of the command",
    "sweep": "the stored sweep that asked for the run",
    "arm": "the arm of a study",
    "stage": "the stage of a study",
    "published_vocab_size": "the vocabulary of a preset at its own size",
}
# What conf/ has no comment for, and the keys of studies, which have no file of their own there.
MEANINGS = {
    "seed": "of weights and data order alike",
    "results_dir": "the folder of the results",
    "model.d_model": "width of the stream",
    "model.n_layers": "number of blocks",
    "model.n_heads": "query heads; null: d_model / head_dim",
    "model.tie_embeddings": "true: the head is the token table",
    "model.dropout": "share of dropped numbers, on the output of each branch and on the token rows",
    "activation.gated": "whether a second matrix gates the first",
    "activation.fn": "the function",
    "activation.fn.alpha": "of ELU: the limit to the left",
    "aspect_ratio.ratio": "d_model / n_layers; null: sizes as given",
    "budget.match": "what is matched",
    "optim.beta1": "decay of the first moment",
    "optim.beta2": "decay of the second moment",
    "optim.eps": "added to the root of the second moment",
    "optim.weight_decay": "of matrices",
    "trainer.steps": "training steps",
    "schedule.warmup_steps": "steps until the full rate; null: by warmup_fraction",
    "schedule.warmup_fraction": "steps until the full rate, as a share of all",
    "schedule.final_fraction": "of the full rate, at the end",
    "runtime.checkpoint_seconds": "between checkpoints",
    "runtime.device": "where a run is trained",
    "runtime.wandb": "auto: online if a key is configured; online, offline, disabled",
    "runtime.wandb_project": "the project of wandb",
    "runtime.progress": "how progress is shown; auto: live on a terminal",
    "diagnostics.measures": "what is measured",
    "data.texts": "the texts of a mixture by name; each has the keys of its source",
    "norm.eps": "added to the variance or the mean square",
    "posemb.rope_theta": "the base of the angles",
    "sweep.question": "the question, as one sentence",
    "sweep.arms": "the arms by name, each a list of overrides; the first is the baseline",
    "sweep.seeds": "a number of seeds, or values and mode",
    "sweep.seeds.values": "the number of seeds (0, 1, ...), or a list of them",
    "sweep.seeds.mode": "what a seed moves: paired (weights and order), init, data, crossed (every pair)",
    "sweep.claims": "codes of the claims that the study tests",
    "sweep.scales": "what differs at a scale, as overrides",
    "sweep.cross": "more keys with values, which multiply the arms",
    "sweep.zip": "keys whose values go in pairs",
    "sweep.skip": "combinations to leave out",
    "sweep.starts": "arm: the arm whose weights it starts from",
    "sweep.looks": "numbers of pairs after which decided arms stop",
    "sweep.look_rule": "the rule of the looks; null: obrien_fleming",
    "sweep.ladder": "several sizes for every arm; below",
    "tune.mode": "how rates are chosen",
    "norm.bias": "false: no bias",
    "activation.fn.approximate": "tanh: the approximation of GELU",
    "posemb.factor": "how many times longer a text may be",
    "posemb.short_factor": "divisor of the frequencies within original_length, one or one a pair",
    "posemb.long_factor": "divisor of the frequencies beyond original_length, one or one a pair",
    "posemb.theta": "the base of the wavelengths",
    "posemb.n_buckets": "number of learned distances",
    "posemb.max_distance": "the distance from which on all share a bucket",
    "attention.window": "tokens that a layer with a window reads",
    "attention.local_per_global": "layers with a window for each layer that reads everything",
    "attention.norm_eps": "of the norms of the latent vectors",
    "ffn.n_experts": "number of experts in a layer",
    "ffn.group_k": "groups that a token may meet",
    "stability.qk_norm": "the norm of queries and keys",
    "stability.v_norm": "the norm of values",
    "stability.qk_norm_over": "all_heads: one norm over all heads of a token; null: one for each head",
    "stability.z_loss": "weight of the squared log Z",
    "stability.attention_soft_cap": "largest attention score, by a tanh",
    "stability.final_soft_cap": "largest logit, by a tanh",
    **{f"stability.{norm}.{key}": f"as {key} of norm" for norm in ("qk_norm", "v_norm") for key in ("eps", "gain", "unit_offset")},
    "model.mlp_bias": "of the feed-forward network; null: as bias",
    "data.modulus": "numbers are modulo this",
    "data.n_documents": "number of documents",
    "data.source": "set by the option",
    "tokenizer.kind": "set by the option",
    "objective.kind": "set by the option",
    "optim.kind": "set by the option",
    "schedule.kind": "set by the option",
    "optim.lr_rule.base": "the best rate at the sizes of this rule",
    **{f"optim.lr_rule.{key}": "a size of the rule, at which the rate is base" for key in ("d_model", "tokens", "batch_tokens")},
    **{f"optim.lr_rule.{key}": "the power of a size" for key in ("width_power", "tokens_power", "batch_power")},
    **{f"hydra.launcher.{key}": f"{key} of sbatch" for key in ("account", "qos", "constraint", "mem_gb")},
    "hydra.sweeper.space.low": "lower end of a range",
    "hydra.sweeper.space.high": "upper end of a range",
    "hydra.sweeper.space.log": "true: the range is logarithmic",
    "hydra.sweeper.space.step": "distance of the points of a range",
    "hydra.sweeper.space.choices": "values to choose from",
    "hydra.sweeper.halving.rungs": "shares of the steps after which trials stop",
    "hydra.sweeper.halving.keep": "share of the trials that continue",
}  # fmt: skip


class Key(NamedTuple):
    """A key of a group's files: its value in the default option (or the first that has it), and its comment."""

    name: str
    value: str
    meaning: str
    owners: tuple[str, ...]


def page() -> str:
    """Return the whole page."""
    types = _types()
    parts = [HEAD, "## Top-level keys\n\n", _table([_top_row(name, types) for name in TOP])]
    for title, groups in (("Axes", AXES), ("Everything else", OTHER_GROUPS)):
        parts += [f"\n## {title}\n"] + [_group(group, types) for group in groups]
    parts += ["\n## Sizes and published systems\n"] + [_options_only(group) for group in SIZE_GROUPS]
    parts += ["\n## Studies\n", *_studies(types), "\n## Where runs are trained\n", *_plugins(types)]
    parts.append("\n## Set by the program\n\nThese stand in config.yaml and are not for the command line.\n\n")
    parts.append(markdown_table(("key", "meaning"), [(f"`{key}`", words) for key, words in SET_BY_US.items()]) + "\n")
    return "".join(parts)


def _types() -> dict[str, str]:
    """Return the type of each key in words, from the schema and from the parts that ``conf/`` names."""
    found: dict[str, str] = {}
    for root, model in {
        "": RunRequest,
        "sweep": StudySettings,
        "tune": TuneSettings,
        "hydra.sweeper": SearchSettings,
    }.items():
        found |= field_types(model, root)
    for path in sorted(CONF_DIR.glob("*/*.yaml")):
        if path.parent.name not in SIZE_GROUPS:
            node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            found |= part_types(node.get(path.parent.name, node), path.parent.name)
    return found


def _group(group: str, types: dict[str, str]) -> str:
    """Return the section of a group: its options, and its keys. `types` loses nothing."""
    keys = {f"{group}.{key.name}": key for key in read_keys(group)}
    rows = [_row(name, key, types, len(options(group, shipped=True))) for name, key in keys.items()]
    # parts within parts, and keys that no file sets
    nested = [name for name in types if name.startswith(f"{group}.") and name not in keys and "texts." not in name]
    hidden = {"data.texts"} if group == "data" else set()
    rows += [_row(name, Key(name, "", "", ()), types, 0) for name in sorted({*nested, *hidden} - set(keys))]
    return f"\n### {group}\n\n{_options(group)}\n" + (f"\n{_table(rows)}" if rows else "")


def _options(group: str) -> str:
    default = default_choices().get(group)
    rows = [
        (f"**`{option}`**" if option == default else f"`{option}`", _cell(words))
        for option, words in options(group, shipped=True).items()
    ]
    return markdown_table((f"`{group}=` (default in bold)", "is"), rows)


def _options_only(group: str) -> str:
    if group == "preset":
        return "\n### preset\n\n`python -m lmablate.presets` lists the systems, with their counts and sources.\n"
    rows = f"\n{_table(_ladder_rows(_types()))}" if group == "ladder" else ""
    return f"\n### {group}\n\n{_options(group)}\n{rows}"


def _ladder_rows(types: dict[str, str]) -> list[tuple[str, ...]]:
    return [_row(f"sweep.ladder.{key.name}", key, types, 0) for key in read_keys("ladder")]


def _studies(types: dict[str, str]) -> Iterator[str]:
    """Yield the sections of ``sweep`` and ``tune``."""
    yield "\n### sweep\n\nThe node of a stored study.\n\n"
    names = [name for name in types if name.startswith("sweep.") and not name.startswith("sweep.ladder.")]
    yield _table([_row(name, Key(name, "", "", ()), types, 0) for name in names])
    yield f"\n### tune\n\n{_options('tune')}\n\n"
    yield _table([_row(f"tune.{key.name}", key, types, 0) for key in read_keys("tune", "per_arm")])


def _plugins(types: dict[str, str]) -> Iterator[str]:
    """Yield the sections of Hydra's launchers and sweepers."""
    for group in ("hydra/launcher", "hydra/sweeper"):
        yield f"\n### {group}\n\n{_options(group)}\n\n"
        place = group.replace("/", ".")
        rows = [_row(f"{place}.{key.name}", key, types, 0) for key in read_keys(group)]
        named = {f"{place}.{key.name}" for key in read_keys(group)}
        rows += [
            _row(name, Key(name, "", "", ()), types, 0)
            for name in types
            if name.startswith(f"{place}.") and name not in named
        ]
        yield _table(rows)


def read_keys(group: str, default: str | None = None) -> list[Key]:
    """Return the keys of a group in the order of its files, the default option's first."""
    default = default or default_choices().get(group) or ""
    paths = sorted((CONF_DIR / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if "# @package _global_" in text:  # the group's keys stand below its name
            below = text.partition(f"\n{group}:\n")[2]
            text = re.sub(r"^  ", "", re.match(r"(?:  .*\n)*", below)[0], flags=re.M)
        for line in text.splitlines():
            match = re.match(r"(\w+):\s*(.*?)\s*(?:\s#\s*(.*))?$", line)
            if match and match[1] not in ("defaults", "_target_", "source", "kind"):
                found.setdefault(match[1], []).append((path.stem, match[2], match[3] or ""))
    return [
        Key(
            name, seen[0][1], next((words for _, _, words in seen if words), ""), tuple(option for option, _, _ in seen)
        )
        for name, seen in found.items()
    ]


def _row(name: str, key: Key, types: dict[str, str], n_options: int) -> tuple[str, ...]:
    owners = ""
    group = name.partition(".")[0]
    if 0 < len(key.owners) < n_options and group in (*AXES, *OTHER_GROUPS) and not _inherits(group):
        owners = f" Only with {', '.join(f'`{group}={option}`' for option in key.owners)}."
    default = f"`{key.value}`" if key.value else ""
    kind = "text" if name.endswith((".source", ".kind")) else types.get(name) or _of_value(key.value)
    return (f"`{name}`", kind, default, _cell(MEANINGS.get(name, "") or key.meaning), _cell(_limits(name) + owners))


def _of_value(value: str) -> str:
    """Return the type of a default in words, for keys of Hydra's plugins, which no schema has."""
    return {int: "whole number", float: "number", str: "text"}.get(
        type(yaml.safe_load(value or "null")), "a value or null"
    )


def _inherits(group: str) -> bool:
    """Return whether options of the group take keys from another option, as model=small does from model=tiny."""
    return group in ("model", "runtime", "trainer")


LIMITS = runpy.run_path(str(ROOT / "tests" / "limits_table.py"))["LIMITS"]


def _limits(name: str) -> str:
    limit = LIMITS.get(name)
    if limit is None:
        return ""
    text = limit.effect + "."
    if limit.refused:
        text += f" Refused: {', '.join(f'`{one}`' for one in limit.refused)}."
    if limit.logged:
        text += f" Notice: {', '.join(f'`{one}`' for one in limit.logged)}."
    return text


def _top_row(name: str, types: dict[str, str]) -> tuple[str, ...]:
    line = re.search(rf"^{name}:\s*(\S+)(?:\s+#\s*(.*))?$", (CONF_DIR / "train.yaml").read_text(encoding="utf-8"), re.M)
    assert line is not None
    return _row(name, Key(name, line[1], line[2] or "", ()), types, 0)


def _cell(words: str) -> str:
    """Return words for a cell of a table: signs of Markdown are escaped outside code."""
    parts = re.split(r"(`[^`]*`)", words.strip())
    escaped = (part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)
    return "".join(escaped).replace("|", "\\|")


def _table(rows: list[tuple[str, ...]]) -> str:
    return markdown_table(("key", "type", "default", "meaning", "limits"), rows) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
