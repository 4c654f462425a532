"""The claims on experts are held against the very arms of their sweep, and spikes are counted where every step was recorded."""

import made_up
import pytest
import yaml
from test_claims import arm, said, verdict

from lmablate.core.paths import CONF_DIR, ROOT

SWEEP = yaml.safe_load((ROOT / "sweeps" / "moe.yaml").read_text())["sweep"]
SEEDS = 4
# The arms that each test of a claim sets against each other.
CONTRASTS = {
    "M1": [("top-2 of 8", "dense")],
    "M2": [("top-4 of 16", "top-2 of 8")],
    "M3": [("3 of 15 and a shared", "top-4 of 16")],
    "M4": [("no balancing", "top-2 of 8")],
    "M5": [("router z-loss", "top-2 of 8")] * 2,
}


def columns_of(words):
    """The columns of a run that an arm's words make."""
    chosen = dict(word.split("=") for word in words)
    option = chosen.pop("ffn", "dense")
    part = yaml.safe_load((CONF_DIR / "ffn" / f"{option}.yaml").read_text())
    part |= {key.removeprefix("ffn."): yaml.safe_load(value) for key, value in chosen.items()}
    return {"ffn": option} | {f"ffn__{key}": value for key, value in part.items() if key != "_target_"}


def arms(**spikes):
    """Runs of every arm, each with an effect of its own and, where they are given, with its spike scores."""
    out = []
    for i, (name, words) in enumerate(SWEEP["arms"].items()):
        rows = arm(SEEDS, 0.7 * i, **columns_of(words))
        for row, score in zip(rows, spikes.get(name.split()[0], ()), strict=False):
            row |= {"diagnostics.loss_spike_score": score, "diagnostics.spike_values": 380}
        out.append(rows)
    return out


def runs_of(name):
    first = SEEDS * list(SWEEP["arms"]).index(name)
    return [f"{i:012x}" for i in range(first, first + SEEDS)]


def test_the_sweep_asks_for_the_claims_that_have_tests():
    assert SWEEP["claims"] == list(CONTRASTS)


@pytest.mark.parametrize("claim", CONTRASTS)
def test_every_claim_is_held_against_its_two_arms_and_no_other(claim):
    row = verdict(claim, *arms())
    assert [test["runs"] for test in row["tests"]] == [
        {"plus": runs_of(plus), "minus": runs_of(minus)} for plus, minus in CONTRASTS[claim]
    ]
    assert "several runs of one seed" not in said(row)


def test_a_shared_expert_that_changes_nothing_is_what_is_claimed():
    words = [SWEEP["arms"][name] for name in CONTRASTS["M3"][0]]
    near = verdict("M3", arm(8, 0.05, **columns_of(words[0])), arm(8, **columns_of(words[1])))
    assert near["verdict"] == "supported" and "within 0.4 % either way" in near["reason"]
    far = verdict("M3", arm(8, -2.0, **columns_of(words[0])), arm(8, **columns_of(words[1])))
    assert far["verdict"] == "contradicted"
    larger = verdict("M3", arm(8, n_params=1_400_000, **columns_of(words[0])), arm(8, **columns_of(words[1])))
    assert "no arms with equal parameters" in larger["reason"]


def test_spikes_are_compared_where_every_step_was_recorded():
    fewer = arms(**{"top-2": [2.0, 3.0, 2.5, 2.0], "router": [0.5, 1.0, 0.5, 0.0]})
    spikes, loss = verdict("M5", *fewer)["tests"]
    assert spikes["effect"] == pytest.approx(100 * (0.5 / 2.375 - 1))
    assert spikes["verdict"] == "supported"
    assert loss["direction"] == "not_higher" and loss["verdict"] == "contradicted"  # made up to cost a lot

    for rows in fewer:
        for row in rows:
            row["diagnostics.spike_values"] = 20  # means over twenty steps
    spikes, _ = verdict("M5", *fewer)["tests"]
    assert spikes["verdict"] == "not decided"
    assert "without a spike score of every step (diagnostics=standard runtime.log_every=1)" in spikes["reason"]

    none = arms(**{"top-2": [0.0] * 4, "router": [0.0] * 4})
    spikes, _ = verdict("M5", *none)["tests"]
    assert spikes["verdict"] == "not decided" and "are at 0" in spikes["reason"]


def test_a_run_that_diverged_early_has_its_spikes_counted_so_far():
    early = arms(**{"top-2": [2.0, 3.0, 2.5, 2.0], "router": [0.5, 1.0, 0.5, 0.0]})
    names = list(SWEEP["arms"])
    lost = early[names.index("top-2 of 8")][1]
    lost |= {"status": "diverged", "val_loss": None, "diverged_at_step": 120, "diagnostics.spike_values": 100}
    spikes, _ = verdict("M5", *early)["tests"]
    assert spikes["n"] == 4 and spikes["diverged"] == {"plus": [0, 4], "minus": [1, 4]}
    assert made_up.COMMON["trainer.steps"] == 400
