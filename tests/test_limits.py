"""Design rule 11 for values: a number without an effect is refused or said, and the table of them is whole and true."""

import copy

import pytest
import yaml
from limits_table import LIMITS
from numeric_keys import numeric_keys
from tiny import SMALL, VOCAB, distance, training_record

from lmablate.config import limits
from lmablate.config.composition import explicit, from_request, request
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.sweeper.optuna_search import Search
from lmablate.sweeper.optuna_space import read_search
from lmablate.sweeper.settings import read_study
from lmablate.training import step_time

STUDY = {
    "sweep": {"question": "?", "claims": [], "scales": {}, "arms": {"a": []}, "seeds": {"values": 4, "mode": "paired"}}
}
STUDY["tune"] = {"mode": "per_arm", "factors": [0.5, 1.0], "seeds": [1000], "extend": 2}
SPACE = {"optim.lr": {"low": 0.001, "high": 0.003, "step": 0.001}}
HALVING = {"rungs": [0.5, 1.0], "keep": 0.5}
SEARCH = {"trials": 20, "sampler": "tpe", "seed": 0, "metric": "val_loss", "seeds": [1000], "space": SPACE}
CASES = [
    pytest.param(key, answer, words, id=f"{answer}: {words}")
    for key, limit in LIMITS.items()
    for answer in ("refused", "logged", "same")
    for words in getattr(limit, answer)
]


@pytest.fixture(scope="module")
def plain():
    return request(["trainer.precision=fp32", "runtime.device=cpu", "runtime.compile=false"])


@pytest.fixture(scope="module")
def small():
    return request([*SMALL, "runtime.compile=false"])


@pytest.fixture(autouse=True)
def a_minute(monkeypatch):
    monkeypatch.setattr(step_time, "estimated_seconds", lambda cfg: 60.0)


def composed(plain, words):
    """The run of override words, without Hydra: an option is its file, a key its value as YAML reads it."""
    raw = copy.deepcopy(plain)
    raw["overrides"] = words
    for word in words:
        key, _, text = word.partition("=")
        group, _, name = key.partition(".")
        if not name and (CONF_DIR / key).is_dir():
            node = yaml.safe_load((CONF_DIR / key / f"{text}.yaml").read_text())
            for part, values in (node if key in node else {key: node}).items():
                raw[part] = values if part == key else raw[part] | values
            raw["choices"][key] = text
        elif name:
            raw[group][name] = yaml.safe_load(text)
        else:
            raw[key] = yaml.safe_load(text)
    return from_request(raw, explicit(words))


def put(node, words, before):
    node = copy.deepcopy(node)
    for word in words:
        key, _, text = word.removeprefix(before).partition("=")
        *way, last = key.split(".")
        inner = node
        for step in way:
            inner = inner[step]
        inner[last] = yaml.safe_load(text)
    return node


def outcome(plain, words):
    """The notices on what these words ask for. Raises ConfigError."""
    if words[0].startswith(("sweep.", "tune.")):
        node = put(STUDY, words, "")
        read_study(node["sweep"], node["tune"], {})
        return []
    if words[0].startswith("hydra.sweeper."):
        node = put({**SEARCH, "halving": HALVING} if "halving" in words[0] else SEARCH, words, "hydra.sweeper.")
        return Search("s", read_search(node, {}), (), None).notices()
    return limits.notices(composed(plain, words))


def test_every_numeric_key_is_in_the_table_and_nothing_else():
    assert numeric_keys() == set(LIMITS)


@pytest.mark.parametrize(("key", "answer", "words"), CASES)
def test_a_number_without_effect_is_refused_or_said(plain, key, answer, words):
    words, name = words.split(), key.rpartition(".")[2]
    if answer == "refused":
        with pytest.raises(ConfigError, match=name):
            outcome(plain, words)
    elif answer == "logged":
        assert any(name in line for line in outcome(plain, words)), outcome(plain, words)
    else:
        without = composed(plain, [word for word in words if not word.startswith(f"{key}=")])
        with_it = composed(plain, words)
        assert with_it.model_copy(update={"overrides": []}) == without.model_copy(update={"overrides": []})


def test_nothing_is_said_of_defaults(plain):
    for words in ([], ["trainer.steps=4"], ["model.context_length=16"], ["trainer.steps=1"], ["schedule=wsd"]):
        assert outcome(plain, words or ["seed=0"]) == [], words


IDLE = [
    ("attention=sliding_window attention.window=24", "attention=mha"),
    ("attention=interleaved attention.local_per_global=2", "attention=sliding_window"),
    ("schedule=wsd schedule.decay_fraction=0.0", "schedule=constant"),
    ("schedule.final_fraction=1.0", "schedule=constant"),
    ("ffn=token_choice ffn.k=8 ffn.balance_loss=0.5", "ffn=token_choice ffn.k=8"),
    ("ffn=token_choice ffn.capacity_factor=4.0", "ffn=token_choice"),
    ("posemb=t5 posemb.n_buckets=64 posemb.max_distance=40", "posemb=t5 posemb.n_buckets=64 posemb.max_distance=90"),
]


@pytest.mark.parametrize(("words", "without"), IDLE, ids=lambda word: word)
def test_what_is_said_to_change_nothing_changes_nothing(small, words, without):
    cfg, other = (composed(small, line.split()) for line in (words, without))
    assert limits.notices(cfg)
    cfg, other = (
        each.model_copy(update={"model": each.model.model_copy(update={"vocab_size": VOCAB})}) for each in (cfg, other)
    )
    assert distance(training_record(cfg), training_record(other)) < 1e-6


def test_a_warmup_that_a_grid_makes_too_long_names_both_numbers(plain):
    assert outcome(plain, ["trainer.steps=1000", "schedule.warmup_steps=500"]) == []
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=500 .*trainer\.steps=250.*shorter warmup"):
        outcome(plain, ["trainer.steps=250", "schedule.warmup_steps=500"])


def test_a_notice_is_told_once_in_a_command(plain, caplog, monkeypatch):
    monkeypatch.setattr(limits, "_logged", set())
    cfg = composed(plain, ["attention=sliding_window", "attention.window=128"])
    with caplog.at_level("INFO"):
        limits.log_notices([cfg, cfg.model_copy(update={"init_seed": 1})])
    assert [record.message[:20] for record in caplog.records] == ["attention.window=128"]
