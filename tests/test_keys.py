"""Rule 11 for keys: every science key of every composed option, changed alone, changes the training record or is refused.

The keys of an axis's options are among the checks of test_axes.py; here are those of everything else.
"""

import pytest
from tiny import options, request

from lmablate.check.keys import Records, dead, leaves
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import components

SCIENCE = ("init_seed", "data_seed", "model", "stability", "objective", "optim", "schedule", "trainer", "aspect_ratio")


def idle(raw, *groups):
    """The keys of these groups that change nothing."""
    records = Records(raw)
    return {path for group in groups for path in leaves(raw[group], group) if dead(records, path)}


@pytest.mark.parametrize(
    "extra",
    [(), ("schedule=wsd",), ("schedule=linear",), ("schedule=constant",)],
    ids=lambda words: "-".join(words) or "default",
)
def test_every_science_key(extra):
    assert idle(request(*extra), *SCIENCE) == set()


@pytest.mark.parametrize("option", options("objective"))
def test_keys_of_an_objective(option):
    assert idle(request(f"objective={option}"), "objective") == set()


def test_a_dead_key_is_caught(monkeypatch):
    monkeypatch.setattr(components, "_trusted", {"broken"})
    raw = request()
    raw["norm"] = {"_target_": f"{'broken'}.DeadKey", "eps": 1e-6, "strength": 1.0}
    assert dead(Records(raw), "norm.eps") == []
    assert dead(Records(raw), "norm.strength") == [30.0, 3.0, 0.5, 0.3]


@pytest.mark.parametrize("first", ["model.d_ff=64", "trainer.steps=3", "schedule.warmup_steps=1"])
@pytest.mark.parametrize(
    "second",
    ["model.ff_ratio=2.0", "trainer.tokens=10_000", "trainer.tokens_per_param=2", "schedule.warmup_fraction=0.5"],
)
def test_two_words_for_one_thing_are_refused_together(first, second):
    same_thing = first.split(".")[0] == second.split(".")[0]
    if same_thing:
        with pytest.raises(ConfigError, match="not both"):
            compose([first, second])
    else:  # each alone replaces the default of the other word
        compose([first, second])
