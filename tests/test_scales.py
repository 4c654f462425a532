"""The sizes of experiments (conf/scale): what each sets, who has the final word, and what a stored sweep adds."""

import pytest

from lmablate.budget import parameters
from lmablate.cli import front_door
from lmablate.config import compose
from lmablate.config.overrides import sized
from lmablate.core.errors import ConfigError
from lmablate.sweeper.settings import seed_pairs


def test_a_size_sets_model_and_length_of_any_run_and_is_no_part_of_it():
    cfg = compose(["scale=laptop"])
    assert 100_000 < parameters(cfg).non_embedding < 250_000
    assert cfg.tokens / parameters(cfg).non_embedding == pytest.approx(20, rel=1e-3)
    assert "scale" not in cfg.choices
    plain = compose(["model=micro", "trainer.tokens_per_param=20"])
    same = {"overrides": [], "choices": {}}
    assert cfg.model_copy(update=same) == plain.model_copy(update=same)


def test_the_command_has_the_final_word_over_its_size():
    assert compose(["scale=laptop", "model=tiny"]).model.d_model == 128
    assert compose(["scale=laptop", "trainer.steps=7"]).trainer.steps == 7
    assert compose(["scale=laptop", "preset=gpt2", "shrink=tiny"]).model.d_model == 128


def test_a_stored_sweep_adds_what_it_says_of_a_size_where_the_command_is_silent():
    assert sized(["sweeps=dropout", "scale=laptop"])[0] == "model=nano"
    assert sized(["model=tiny", "sweeps=dropout", "scale=laptop"]) == ["model=tiny", "sweeps=dropout", "scale=laptop"]
    assert sized(["scale=laptop"]) == ["scale=laptop"]
    assert (
        compose(["sweeps=norm_position", "scale=laptop", "norm_position=post"]).model.d_model == 64
    )  # its arms are not one run's
    with pytest.raises(ConfigError, match="one size at a time"):
        sized(["sweeps=dropout", "scale=laptop,gpu"])


def test_a_study_has_four_paired_seeds_unless_it_says_otherwise():
    found = []
    words = ["-m", "hydra/sweeper=study", "+sweep.question=?", "+sweep.arms={a: []}"]
    assert front_door.main("plan", lambda *_: 1, words, study=lambda one, _: found.append(one) or 0) == 0
    assert found[0].pairs == seed_pairs(found[0].settings.seeds) == [(0, 0), (1, 1), (2, 2), (3, 3)]
