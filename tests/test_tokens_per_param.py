"""A run's length as tokens per parameter: what it counts, what a grid and a study make of it, and what a report says."""

import pandas as pd
import pytest
from fake_results import fake_row
from made_up import frame, rows

from lmablate.budget import parameters
from lmablate.claims import judge
from lmablate.cli import front_door
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.report.claim_tables import headline, lines
from lmablate.results.load import _tokens_per_param
from lmablate.runs.wsd_branches import expand

SMALL = ("data=synthetic", "tokenizer=bytes", "model.d_model=32", "model.n_layers=1", "model.context_length=16")
EACH = "trainer.tokens_per_param=10"


def runs(*argv):
    """The jobs of a command line, without training."""
    found = []

    def study(one, _launcher):
        one.check()
        found.extend(
            cfg
            for pair in one.pairs[:1]
            for arm in one.arms
            for t in one._evaluation(arm, pair)
            for cfg in one.configs(t)
        )
        return 0

    assert front_door.main("plan", lambda cfgs, _: found.extend(cfgs) or 0, list(argv), study=study) == 0
    return found


def alone(cfg):
    """The same run from its recorded overrides."""
    kept = [one for one in cfg.overrides if not one.startswith(("sweeps=", "hydra", "sweep."))]
    return compose(kept)


def test_a_run_counts_its_own_parameters():
    cfg = compose([*SMALL, EACH])
    assert cfg.counted_params == parameters(cfg).non_embedding
    assert cfg.trainer.steps == round(10 * cfg.counted_params / cfg.tokens_per_step)
    assert compose([*SMALL, "trainer.steps=5"]).counted_params is None


def test_experts_count_as_far_as_a_token_meets_them():
    cfg = compose([*SMALL, EACH, "ffn=token_choice"])
    assert cfg.counted_params == parameters(cfg).non_embedding - parameters(cfg).idle < parameters(cfg).non_embedding


def test_a_budget_counts_its_reference():
    layer, rms = (compose([*SMALL, EACH, "budget=params", f"norm={norm}"]) for norm in ("layer", "rms"))
    assert layer.trainer.steps == rms.trainer.steps and layer.counted_params == rms.counted_params


def test_runs_of_one_size_in_a_grid_get_the_tokens_of_the_command_without_its_axes():
    found = runs("-m", *SMALL, EACH, "norm=layer,rms", "model.d_model=32,64")
    steps = [compose([*SMALL, EACH, f"model.d_model={width}"]).trainer.steps for width in (32, 64)]
    assert sorted(cfg.trainer.steps for cfg in found) == [steps[0], steps[0], steps[1], steps[1]]
    assert alone(found[0]).trainer == found[0].trainer


def test_the_first_run_of_a_grid_stands_for_a_command_that_is_none():
    found = runs("-m", *SMALL, EACH, "attention=gqa,interleaved", "model.n_kv_heads=2")
    assert {cfg.trainer.steps for cfg in found} == {
        compose([*SMALL, EACH, "attention=gqa", "model.n_kv_heads=2"]).trainer.steps
    }


def test_all_arms_of_a_study_get_the_tokens_of_its_baseline_without_its_axes():
    arms = "{small: ['activation=gelu'], wide: ['model.ff_ratio=8.0']}"
    words = ("hydra/sweeper=study", "+sweep.question=?", "sweep.seeds=2", f"+sweep.arms={arms}")
    small, wide = runs("-m", *SMALL, EACH, *words)
    assert small.trainer.steps == wide.trainer.steps == compose([*SMALL, EACH]).trainer.steps
    assert alone(wide).trainer == wide.trainer


def test_a_branch_is_made_alone_by_its_steps():
    for branch in expand([compose([*SMALL, EACH, "schedule=wsd_branches"])]):
        kept = [one for one in branch.overrides if not one.startswith("schedule")]
        assert compose(kept).trainer == branch.trainer


def test_older_rows_are_given_their_tokens_per_parameter():
    old = {**fake_row({}), "n_params_active": None}
    experts = {**old, "n_params_active": old["n_params"] - 287_584}
    found = _tokens_per_param(pd.DataFrame([old, experts]))
    assert list(found) == [old["tokens"] / 787_584, old["tokens"] / 500_000] or old["n_params_non_embedding"] != 787_584


def test_a_verdict_on_short_runs_says_so_and_is_in_no_count():
    losses = [4.0, 4.02, 3.99, 4.01]
    for length, short in ((4.99, False), (4.9, True)):
        arms = frame(
            rows(losses, tokens_per_param=20.0),
            rows([loss * 1.05 for loss in losses], posemb="none", tokens_per_param=length),
        )
        found = [row for row in judge(arms, requested={sweep: ["R2"] for sweep in arms["sweep"]}) if row["id"] == "R2"]
        assert found[0]["verdict"] == "supported" and found[0]["tokens_per_param"] == length
        assert found[0]["short_run"] is short
        said = "\n".join(lines(found))
        assert ("supported, short run" in said) is short and f"{length:.3g} tokens per parameter" in said
        assert ("1 verdict rests on short runs" in headline(found)) is short
        assert ("One claim" in headline(found)) is not short


@pytest.mark.parametrize(
    "words", ["trainer.tokens_per_param=20 trainer.steps=3", "trainer.tokens_per_param=2 trainer.tokens=9000"]
)
def test_two_lengths_are_refused(words):
    with pytest.raises(
        ConfigError, match=r"give trainer.steps or trainer.tokens or trainer.tokens_per_param, not both"
    ):
        compose([*SMALL, *words.split()])
