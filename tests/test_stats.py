"""Arms, paired differences and Student's t."""

import json
import math

import fake_results
import pytest

from lmablate.results import load_runs
from lmablate.results.arms import arm_columns, arm_label, axes_that_vary, with_arms
from lmablate.stats import comparisons, interval, paired_differences


def runs_of(path, *words, **keywords):
    fake_results.write_fake_results(path, *words, **keywords)
    return load_runs(path)


# Arms


def test_arms_are_told_apart_by_the_fewest_columns(tmp_path):
    runs = runs_of(tmp_path)
    assert axes_that_vary(runs) == ["norm", "activation"]
    assert {"norm.eps", "model.d_ff", "activation.gated"} <= set(axes_that_vary(runs, config=True))
    assert arm_columns(runs) == ["norm", "activation"]  # d_ff follows from the activation, eps from the norm
    assert set(with_arms(runs)["arm"]) == {"rms · swiglu", "rms · gelu", "layer · swiglu", "layer · gelu"}


def test_a_key_that_was_asked_for_names_the_arm_and_not_what_follows_from_it(tmp_path):
    def follow(row):  # warmup is a fixed share of the steps, and comes first in the configuration
        row["config"]["schedule"]["warmup_steps"] = row["config"]["trainer"]["steps"] // 20

    runs = runs_of(tmp_path, {"norm": ("rms",), "trainer.steps": (400, 800)}, change=follow)
    assert arm_columns(runs) == ["trainer.steps"]
    assert sorted(set(with_arms(runs)["arm"])) == ["steps 400", "steps 800"]


def test_seeds_and_runtime_and_class_paths_make_no_arm(tmp_path):
    def elsewhere(row):
        row["choices"]["runtime"] = "gpu" if row["seed"] else "local"
        row["config"]["norm"]["_target_"] += str(row["seed"])
        row["provenance"]["host"] = f"host{row['seed']}"

    runs = with_arms(runs_of(tmp_path, {}, seeds=(0, 1, 2), change=elsewhere))
    assert arm_columns(runs) == []
    assert set(runs["arm"]) == {"all runs"}


def test_other_texts_and_science_versions_are_never_pooled(tmp_path):
    def changed(row):
        if row["seed"]:
            row["science_version"] = 2
            row["data"]["fingerprint"] = "f" * 12

    runs = runs_of(tmp_path, {}, seeds=(0, 1), change=changed)
    assert with_arms(runs)["arm"].nunique() == 2
    assert "data.fingerprint" in arm_columns(runs)


def test_labels_say_which_axis_a_bare_word_belongs_to():
    row = {
        "norm": "none",
        "activation": "swiglu",
        "optim.lr": 0.003,
        "model.bias": True,
        "data.fingerprint": "0123456789ab",
    }
    assert arm_label(row, list(row)) == "norm none · swiglu · lr 0.003 · bias true · text 01234567"
    assert arm_label({"a.size": 1, "b.size": 2}, ["a.size", "b.size"]) == "a.size 1 · b.size 2"


def test_axes_are_found_in_a_frame_that_went_through_csv(tmp_path):
    import pandas as pd

    runs = runs_of(tmp_path / "results")
    runs.to_csv(tmp_path / "runs.csv", index=False)
    assert axes_that_vary(pd.read_csv(tmp_path / "runs.csv")) == ["norm", "activation"]


# Student's t


def test_interval_is_the_textbook_one():
    low, high = interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-6)
    assert interval([1.0]) is None


# Pairs


def only(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_a_difference_is_b_minus_a_seed_by_seed_with_the_rest_held(tmp_path):
    runs = runs_of(tmp_path, seeds=(0, 1, 2))
    row = only(paired_differences(runs, "activation"), where={"norm": "rms"})
    assert (row["a"], row["b"]) == ("gelu", "swiglu")
    loss = runs.set_index(["norm", "activation", "seed"])["val_loss"]
    expected = [loss["rms", "swiglu", seed] - loss["rms", "gelu", seed] for seed in (0, 1, 2)]
    assert row["differences"] == pytest.approx(expected)
    assert row["mean_difference"] == pytest.approx(sum(expected) / 3)
    assert row["interval_95"] == pytest.approx(list(interval(expected)))
    assert [seed["init_seed"] for seed in row["seeds"]] == [0, 1, 2]
    assert (row["n_pairs"], row["n_unpaired"], row["verdict"]) == (3, 0, "undecided")


def test_every_axis_and_every_pair_of_options_is_compared_once(tmp_path):
    runs = runs_of(tmp_path, {"norm": ("rms", "layer", "none"), "optim.lr": (1e-3, 3e-3)})
    found = [(row["axis"], row["a"], row["b"], tuple(row["where"].values())) for row in comparisons(runs)]
    norms = [("layer", "none"), ("layer", "rms"), ("none", "rms")]
    expected = [("norm", a, b, (lr,)) for lr in (1e-3, 3e-3) for a, b in norms]
    expected += [("optim.lr", 1e-3, 3e-3, (norm,)) for norm in ("layer", "none", "rms")]
    assert found == expected
    json.dumps(comparisons(runs), allow_nan=False)


@pytest.mark.parametrize(
    ("seeds", "shift", "reason"),
    [
        ((0,), lambda seed: 0.1, "1 paired seed: a difference cannot be told from noise"),
        ((0, 1), lambda seed: 0.1 * (-1) ** seed, "2 paired seeds; interval includes 0"),
        (
            (0, 1),
            lambda seed: 0.1 + seed / 1e6,
            "2 paired seeds; interval excludes 0, but no margin or correction has been pre-registered",
        ),
    ],
)
def test_the_verdict_stays_open_and_the_reason_says_why(tmp_path, seeds, shift, reason):
    def exact(row):
        row["val_loss"] = 4.0 + (shift(row["seed"]) if row["choices"]["norm"] == "rms" else 0.0)

    (row,) = comparisons(runs_of(tmp_path, {"norm": ("rms", "layer")}, seeds=seeds, change=exact))
    assert (row["verdict"], row["reason"]) == ("undecided", reason)
    assert (row["interval_95"] is None) == (len(seeds) == 1)


def test_diverged_runs_are_counted_and_not_paired(tmp_path):
    runs = runs_of(
        tmp_path,
        {"norm": ("rms", "layer")},
        seeds=(0, 1, 2),
        diverged=lambda r: r["choices"]["norm"] == "layer" and r["seed"] == 1,
    )
    (row,) = comparisons(runs)
    assert row["n_pairs"] == 2
    assert row["n_diverged"] == {"a": 1, "b": 0}
    assert "diverged and therefore not paired: 1 of a, 0 of b" in row["reason"]


def test_other_seeds_and_other_numerics_are_not_paired(tmp_path):
    def threads(row):
        if row["choices"]["norm"] == "layer" and row["seed"] == 1:
            row["numerics"] = {**row["numerics"], "device": "NVIDIA H200"}
        if row["choices"]["norm"] == "layer" and row["seed"] == 2:
            row["data_seed"] = 5
            row["seed"] = None

    runs = runs_of(tmp_path, {"norm": ("rms", "layer")}, seeds=(0, 1, 2), change=threads)
    (row,) = comparisons(runs)
    assert (row["n_pairs"], row["n_unpaired"]) == (1, 4)
    assert "4 runs without a partner of the same seeds and numerics" in row["reason"]
    (mixed,) = paired_differences(runs, "norm", mix_numerics=True)
    assert (mixed["n_pairs"], mixed["n_unpaired"]) == (2, 2)


def test_unmatched_parameters_stand_in_the_reason(tmp_path):
    def grow(row):
        row["n_params"] += 100_000 if row["choices"]["norm"] == "layer" else 0

    (row,) = comparisons(runs_of(tmp_path, {"norm": ("rms", "layer")}, change=grow))
    assert "parameters differ by 7." in row["reason"]
