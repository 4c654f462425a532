"""Diagnostics in runs: never hashed, asked for later and completed by making the run again, to the bit."""

import json
import signal

import pytest
import yaml
from corpus import QUICK, write_corpus

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.launcher.jobs import prepare_jobs
from lmablate.results import load_history, load_runs
from lmablate.runs.complete_diagnostics import DiagnosticsRerun
from lmablate.runs.prepared import load_data, prepare_run
from lmablate.runs.run import RunSession, execute
from lmablate.runs.wsd_branches import expand
from lmablate.schema.diagnostics import DiagnosticsSettings, covers
from lmablate.training.progress import Interrupted

ON = ("diagnostics=standard", "diagnostics.every=4", "diagnostics.sequences=2")
SAME = ["run_id", "val_loss", "val_bpb", "train_loss", "init_val_loss", "tokens"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_corpus(tmp_path_factory.mktemp("diagnostics") / "text", documents=6)
    return [*QUICK, f"data.paths={text}/*.txt", "trainer.precision=fp32", "runtime.compile=false"]


@pytest.fixture(scope="module")
def composed(words):
    """The same run without and with diagnostics, and its data; results go where a test says."""
    plain, probed = compose(words), compose([*words, *ON])
    data = load_data(plain)

    def at(folder, *, on):
        return (probed if on else plain).model_copy(update={"results_dir": str(folder)})

    return at, data


def job(cfg):
    return prepare_jobs([cfg])[0][0]


def measured(folder):
    history = load_history(folder)
    return history.loc[history["diagnostics"].notna(), "step"].tolist() if "diagnostics" in history else []


def stop_at(cfg, data, step):
    """Train until a record of `step`, then stop as SIGTERM does: a checkpoint is written."""
    with RunSession(prepare_run(cfg, data)) as session:
        seen = [0]

        def train():
            for record in session.trainer.records(lambda: signal.SIGTERM if seen[-1] >= step else 0):
                session.store(record)
                seen.append(record["step"])

        with pytest.raises(Interrupted):
            train()


def test_a_finished_run_is_completed_in_its_own_folder_with_the_same_numbers(composed, tmp_path):
    at, data = composed
    execute(prepare_run(at(tmp_path, on=False), data))
    before = load_runs(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    files = {path.name for path in folder.iterdir()}
    assert job(at(tmp_path, on=False)).done
    assert not job(at(tmp_path, on=True)).done
    assert measured(tmp_path) == []
    stop_at(at(tmp_path, on=True), data, 6)
    # until the second making is done, the first one's row, history and last checkpoint stand
    assert load_runs(tmp_path)[SAME].equals(before[SAME])
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-000000012.safetensors"]
    assert (folder / "again" / "history.jsonl").exists()
    assert not job(at(tmp_path, on=True)).done
    result = execute(prepare_run(at(tmp_path, on=True), data))
    after = load_runs(tmp_path)
    assert after[SAME].equals(before[SAME])
    assert job(at(tmp_path, on=True)).done
    assert job(at(tmp_path, on=False)).done
    assert {path.name for path in folder.iterdir()} == files
    assert measured(tmp_path) == [0, 4, 8, 12]
    assert result["diagnostics"]["first_val_loss"] == result["val_loss"]
    assert result["diagnostics"]["note"] is None
    asked = compose(ON).diagnostics.measures
    assert result["diagnostics"]["measures"] == [measure for measure in asked if measure != "experts"]  # it has none
    assert after["diagnostics.every"].tolist() == [4]
    column = load_history(tmp_path)["diag/layer01/attn/max_logit"]
    assert column.notna().sum() == 4


def test_the_largest_attention_logit_early_in_training_is_in_the_result(words, tmp_path):
    cfg = compose([*words, *ON, "diagnostics.every=1"]).model_copy(update={"results_dir": str(tmp_path)})
    early = execute(prepare_run(cfg, load_data(cfg)))["diagnostics"]["early_max_attention_logit"]
    history = load_history(tmp_path).set_index("step")  # of its 12 steps the first alone lies between 1 and 10 %
    assert early == history.loc[1, [f"diag/layer{i:02}/attn/max_logit" for i in range(cfg.model.n_layers)]].max() > 0


def test_a_second_making_that_comes_out_otherwise_says_so(composed, tmp_path, caplog):
    at, data = composed
    execute(prepare_run(at(tmp_path, on=False), data))
    (path,) = tmp_path.glob("*/result.json")
    row = json.loads(path.read_text())
    row["val_loss"] += 1e-6
    del row["checksum"]  # as of a row that is not damaged
    row["sweep"], row["numerics"]["compiled"] = "norms", True
    path.write_text(json.dumps(row))
    result = execute(prepare_run(at(tmp_path, on=True), data))
    assert "made with other compiled" in result["diagnostics"]["note"]
    assert str(row["val_loss"]) in result["diagnostics"]["note"]
    assert "came out" in caplog.text
    assert result["sweep"] == "norms"


def test_a_run_that_began_without_starts_anew_and_one_that_began_with_goes_on(composed, tmp_path):
    at, data = composed
    execute(prepare_run(at(tmp_path / "whole", on=True), data))
    stop_at(at(tmp_path / "late", on=False), data, 6)
    execute(prepare_run(at(tmp_path / "late", on=True), data))
    stop_at(at(tmp_path / "early", on=True), data, 6)
    (begun,) = (tmp_path / "early").glob("*/checkpoint/*")
    execute(prepare_run(at(tmp_path / "early", on=True), data))
    histories = [load_history(tmp_path / name).drop(columns=["seconds", "tokens_per_second"]) for name in
                 ("whole", "late", "early")]  # fmt: skip
    assert begun.name == "step-000000007.safetensors"
    assert histories[0].equals(histories[1])
    assert histories[0].equals(histories[2])


def test_branches_are_completed_from_a_trunk_that_has_what_is_asked_for(words, tmp_path):
    branches = ["schedule=wsd_branches", "schedule.branches=[0.5,1.0]", "schedule.warmup_steps=1"]
    base = [*words, *branches, f"results_dir={tmp_path}"]
    for extra in ((), ON):
        configs = expand([compose([*base, *extra])])
        for cfg in reversed(configs):  # the longest first
            execute(prepare_run(cfg))
        losses = load_runs(tmp_path).sort_values("run_id")["val_loss"].tolist()
        if not extra:
            before = losses
    assert losses == before
    steps = load_history(tmp_path).query("diagnostics.notna()").groupby("run_id")["step"].agg(list).tolist()
    assert sorted(steps) == [[0, 4, 6], [0, 4, 8, 12]]


def test_not_hashed_and_no_column_of_an_arm(composed, tmp_path):
    at, _ = composed
    plain, probed = job(at(tmp_path, on=False)), job(at(tmp_path, on=True))
    assert plain.run_id == probed.run_id
    assert plain.cfg.choices == probed.cfg.choices
    assert plain.cfg.diagnostics is None
    assert "diagnostics" not in plain.cfg.choices


def test_a_run_asked_for_with_and_without_is_made_once_with(composed, tmp_path):
    at, _ = composed
    for order in ((False, True), (True, False)):
        jobs, _ = prepare_jobs([at(tmp_path, on=on) for on in order])
        assert [one.requests for one in jobs] == [2]
        assert jobs[0].cfg.diagnostics is not None
    other = at(tmp_path, on=True)
    other = other.model_copy(update={"diagnostics": other.diagnostics.model_copy(update={"sequences": 3})})
    with pytest.raises(ConfigError, match="asked for twice"):
        prepare_jobs([at(tmp_path, on=True), other])


def settings(**changes):
    return DiagnosticsSettings(**{"measures": ["norms", "logits"], "every": 4, "sequences": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "enough"),
    [
        ({}, True),
        ({"measures": ["norms"]}, True),
        ({"every": 8}, True),
        ({"every": 2}, False),
        ({"every": 6}, False),
        ({"sequences": 4}, False),
        ({"measures": ["norms", "attention"]}, False),
    ],
)
def test_what_is_there_covers_what_is_asked(changes, enough):
    assert covers(settings().model_dump(), settings(**changes)) is enough


def test_a_restored_row_without_its_history_is_not_done(composed, tmp_path):
    at, data = composed
    execute(prepare_run(at(tmp_path, on=True), data))
    assert job(at(tmp_path, on=True)).done
    next(tmp_path.glob("*/history.jsonl")).unlink()
    assert not job(at(tmp_path, on=True)).done


def test_keys_without_effect_are_refused():
    with pytest.raises(ConfigError, match=r"diagnostics\.every=3 has no effect where nothing is measured"):
        compose(["diagnostics.every=3"])
    with pytest.raises(ConfigError, match=r"diagnostics\.every needs a number"):
        compose(["diagnostics=standard", "diagnostics.every=null"])
    with pytest.raises(ConfigError, match=r"diagnostics\.measures"):
        compose(["diagnostics=standard", "diagnostics.measures=[gradient]"])


def test_a_second_making_reads_the_first_ones_row(tmp_path):
    assert DiagnosticsRerun(tmp_path, "abc").result_path == tmp_path / "abc" / "result.json"
    assert DiagnosticsRerun(tmp_path, "abc").checkpoint_dir != tmp_path / "abc" / "checkpoint"


def test_config_yaml_keeps_what_was_asked_for(composed, tmp_path):
    from lmablate.runs.config_file import read_config, write_config

    at, _ = composed
    write_config(at(tmp_path, on=True), tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml").diagnostics == at(tmp_path, on=True).diagnostics
    old = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del old["diagnostics"]  # written before there were any
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert read_config(tmp_path / "config.yaml").diagnostics is None
