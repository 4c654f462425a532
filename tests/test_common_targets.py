"""What a report says of runs whose objectives or sizes differ: losses on common targets, and what a budget matched."""

import pandas as pd
import pytest
from fake_results import fake_row
from made_up import frame, rows

from lmablate.launcher.progress import outcome
from lmablate.report.summary import arms_table, question
from lmablate.results.common_targets import objective_notices, on_common_targets
from lmablate.results.size_matching import matched_size, size_notices
from lmablate.schema.result import RunResult


def arm(name, own, half, objective, **columns):
    made = rows(own, objective=objective, budget="none", tokens=1, **columns)
    return [{**row, "arm": name, "val_loss_after_50": value} for row, value in zip(made, half, strict=True)]


def mixed():
    """The second prefix run diverged."""
    made = frame(
        arm("causal", [4.2, 4.4], [4.0, 4.2], "causal"), arm("prefix", [3.9, None], [4.2, float("nan")], "prefix")
    )
    made.attrs["axes"] = [*made.attrs["axes"], "objective"]
    return made


def test_runs_of_one_objective_stay_as_they_are():
    runs = frame(arm("causal", [4.2, 4.4], [4.0, 4.2], "causal"))
    assert on_common_targets(runs) is runs
    assert objective_notices(runs) == []


def test_mixed_objectives_are_shown_on_the_targets_they_have_in_common():
    runs = mixed()
    shown = on_common_targets(runs)
    assert shown["val_loss"].tolist()[:3] == [4.0, 4.2, 4.2]
    assert pd.isna(shown["val_loss"].iloc[3])  # diverged
    assert shown["val_loss_own"].tolist()[:3] == [4.2, 4.4, 3.9]
    assert runs["val_loss"].tolist()[:3] == [4.2, 4.4, 3.9]
    assert shown.attrs == runs.attrs
    means = arms_table(shown).set_index("arm")["mean"]
    assert means["causal"] == pytest.approx(4.1)
    assert means["prefix"] == pytest.approx(4.2)
    (note,) = objective_notices(shown)
    assert "Objectives differ (causal, prefix)" in note
    assert "targets they have in common" in note


def test_runs_without_the_common_loss_are_not_compared_in_silence():
    runs = mixed()
    runs.loc[runs.index[0], "val_loss_after_50"] = float("nan")
    assert on_common_targets(runs) is runs
    assert "1 finished runs were not measured" in objective_notices(runs)[0]
    old = mixed().drop(columns="val_loss_after_50")
    assert on_common_targets(old) is old
    assert "3 finished runs were not measured" in objective_notices(old)[0]


def sized(budget, **sizes):
    made = [
        [
            {**row, "arm": name, "preset": name, "shrink": "tiny"}
            for row in rows([4.0], budget=budget, tokens=1, n_params=a, n_params_non_embedding=b)
        ]
        for name, (a, b) in sizes.items()
    ]
    out = frame(*made)
    out.attrs["axes"] = [*out.attrs["axes"], "budget", "preset", "shrink"]
    return out


def test_a_budget_that_was_met_is_said_with_what_it_left_different():
    runs = sized("params", gpt2=(1_000_000, 900_000), pythia_12b=(1_003_000, 750_000))
    assert matched_size(runs) == "n_params"
    (note,) = size_notices(runs, arms_table(runs))
    assert (
        note
        == "Parameters were matched (equal within 0.3%), which leaves arms that differ in non-embedding parameters by 20.0%."
    )
    assert question(runs) == "preset (gpt2, pythia_12b) shrunk to tiny, at equal parameters"


@pytest.mark.parametrize("budget", ["none", "params", "kv_cache"])
def test_sizes_that_were_not_matched_are_said_to_differ(budget):
    runs = sized(budget, gpt2=(1_000_000, 900_000), pythia_12b=(1_100_000, 900_000))
    assert matched_size(runs) is None
    assert size_notices(runs, arms_table(runs)) == ["Parameters differ by 10.0% between arms: they were not matched."]
    assert question(runs).endswith("shrunk to tiny")


def test_a_run_without_bits_per_byte_ends_in_words():
    base = fake_row({})
    row = {"status": "completed", "val_loss": 4.0, "val_bpb": None, "tokens_per_second": 1000.0}
    assert outcome(RunResult.model_validate(base | row)) == "val loss 4.0000"
    assert outcome(RunResult.model_validate(base | row | {"val_bpb": 2.0})) == "val loss 4.0000, 2.0000 bits/byte"
