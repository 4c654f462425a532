"""All published runs as one Parquet file: nothing is lost on the way, and what is not ours or was changed is refused."""

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_results import with_own_id, write_fake_study

from lmablate import archive
from lmablate.core.errors import ConfigError
from lmablate.results import load_runs
from lmablate.results.archives import read_folder
from lmablate.results.dataset import METADATA, dataset_of, joined, to_csv, to_parquet
from lmablate.results.dataset_reading import read_dataset
from lmablate.results.studies import load_studies
from lmablate.runs.evaluation_files import write_evaluation
from lmablate.schema.evaluation import EvaluationFile

ARMS = {"rope": {"posemb": "rope"}, "none": {"posemb": "none"}}
SCORES = {"tokens": 10, "nats_per_token": 3.5, "bits_per_byte": 1.5, "accuracy": 0.25, "ece": 0.01}


def evaluation(run_id):
    text = {"name": "validation", "fingerprint": "f", "tokens": 10, "bytes": 30}
    results = [{"length": 256, "stride": 256, **SCORES, "positions": []}]
    return EvaluationFile.model_validate(
        {"run_id": run_id, "text": text, "changes": [], "train_length": 128, "results": results}
    )


def on_a_longer_text(row):
    row["data"] |= {"fingerprint": "another"}
    with_own_id(row)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Archives of three studies: `one` and `two` share the runs of an arm, `one_long` is `one` on another text."""
    base = tmp_path_factory.mktemp("published")
    few = {"seeds": range(2), "rates": (1e-3, 4e-3)}
    write_fake_study(base / "r", "one", ARMS, change=with_own_id, **few)
    write_fake_study(base / "r", "two", {"rope": ARMS["rope"], "layer": {"norm": "layer"}}, change=with_own_id, **few)
    write_fake_study(base / "long", "one", ARMS, change=on_a_longer_text, **few)
    run = json.loads((base / "r" / "studies" / "one.json").read_text())["runs"][-1]["run_id"]
    write_evaluation(base / "r" / run, evaluation(run))
    for folder, sweep, name in (("r", "one", "one"), ("r", "two", "two"), ("long", "one", "one_long")):
        archive.save(base / folder, base / name, sweep)
    return [base / name for name in ("one", "one_long", "two")]


@pytest.fixture(scope="module")
def table(published):
    return dataset_of(list(map(read_folder, published))).table


@pytest.fixture
def file(table, tmp_path):
    path = tmp_path / "runs.parquet"
    path.write_bytes(to_parquet(table))
    return path


def results_in(folder):
    found = folder.glob("*/result.json"), folder.glob("*/evaluations/*"), folder.glob("studies/*")
    return {str(path.relative_to(folder)): path.read_text() for paths in found for path in paths}


def test_the_dataset_restores_what_its_folders_restore(published, file, tmp_path):
    assert archive.main(["restore", *map(str, published), str(tmp_path / "folders")]) == 0
    assert archive.main(["restore", str(file), str(tmp_path / "dataset")]) == 0
    assert results_in(tmp_path / "folders") == results_in(tmp_path / "dataset")
    assert len([name for name in results_in(tmp_path / "dataset") if "evaluations" in name]) == 1


def test_a_run_is_one_row_that_lists_its_uses(published, file):
    runs = pd.read_parquet(file)
    assert runs["run_id"].is_unique and len(runs) == 20  # 8 of each study, 4 of them shared by two
    used = runs.explode(["studies", "arms", "stages"])
    assert used.groupby(["studies", "arms", "stages"]).size().to_dict() == {
        (study, arm, stage): 2
        for study, arms in (("one", ARMS), ("one_long", ARMS), ("two", ("rope", "layer")))
        for arm in arms
        for stage in ("tune", "evaluate")
    }
    assert set(runs["posemb"]) == {"rope", "none"} and runs["diverged_at_step"].isna().all()


def test_two_studies_of_one_sweep_stay_apart(published, tmp_path):
    for path in (published[1], published[0], published[0]):  # a study that is there is not written twice
        archive.restore(path, tmp_path / "back")
    studies = load_studies(tmp_path / "back")
    assert set(studies) == {"one", "one @ one"}
    assert archive.save(tmp_path / "back", tmp_path / "again", "one @ one") == 8
    assert archive.restore(tmp_path / "again", tmp_path / "third") == (8, 0)
    assert set(load_studies(tmp_path / "third")) == {"one @ one"}


def test_the_same_runs_make_the_same_bytes_and_a_csv_of_the_same_numbers(published, table, file, tmp_path):
    assert file.read_bytes() == to_parquet(dataset_of(list(map(read_folder, published))).table)
    read = pd.read_csv(io.StringIO(to_csv(table)))
    whole = pd.read_parquet(file)
    for name in ("run_id", "val_loss", "optim.lr", "n_params"):
        assert read[name].tolist() == whole[name].tolist()
    assert read["studies"][0] == " | ".join(whole["studies"][0])
    archive.restore(file, tmp_path / "back")
    assert load_runs(tmp_path / "back")["val_loss"].tolist() == whole["val_loss"].tolist()


def test_copies_of_a_run_that_ended_differently_are_refused_by_their_folders(published, tmp_path):
    one = read_folder(published[0])
    other = one._replace(name="copy", rows=[{**row, "val_loss": row["val_loss"] + 1} for row in one.rows])
    with pytest.raises(ConfigError, match=r"is in one and in copy, with another val_loss: train them into one"):
        joined([one, other])
    slower = one._replace(
        name="copy",
        rows=[{**row, "wall_seconds": 1.0, "numerics": {**row["numerics"], "gang_size": 8}} for row in one.rows],
    )
    assert joined([one, slower]).rows == joined([one]).rows


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, [values])


def with_result(table, change):
    rows = [json.loads(text) for text in table["result"].to_pylist()]
    change(rows[0])
    return replaced(table, "result", [json.dumps(row) for row in rows])


def another_rate(table):
    """Change a configuration in all places, and not the id."""
    changed = with_result(table, lambda row: row["config"]["optim"].update(lr=0.5))
    return replaced(changed, "optim.lr", [0.5, *table["optim.lr"].to_pylist()[1:]])


def elsewhere(table):
    changed = with_result(table, lambda row: row.update(run_id="../../evil"))
    return replaced(changed, "run_id", ["../../evil", *table["run_id"].to_pylist()[1:]])


DAMAGE = {
    "another table": (lambda table: pa.table({"a": [1]}), "has no column run_id, studies"),
    "a lost column": (lambda table: table.drop_columns(["result"]), "has no column result"),
    "a lost head": (lambda table: table.replace_schema_metadata({}), "no JSON objects"),
    "a later version": (
        lambda table: table.replace_schema_metadata({METADATA: b'{"schema_version": 2}'}), "this lmablate reads 1",
    ),
    "lost studies": (
        lambda table: table.replace_schema_metadata({METADATA: b'{"schema_version": 1, "studies": "eJyLjgUAARUAuQ"}'}),
        "studies in its metadata are damaged",
    ),
    "a changed loss": (
        lambda table: replaced(table, "val_loss", [1.0, *table["val_loss"].to_pylist()[1:]]), r"val_loss of run \w+ is 1.0, and",
    ),
    "a run twice": (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "a run is there twice"),
    "numbers for results": (lambda table: replaced(table, "result", list(range(len(table)))), "must hold text in every row"),
    "a lost key": (lambda table: with_result(table, lambda row: row.pop("n_params")), "lacks n_params"),
    "another configuration": (another_rate, "is not the run of its configuration, whose id is"),
    "a name that leads away": (elsewhere, "is not the name of a run"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_dataset_that_is_none_or_was_changed_is_refused(change, said, table, tmp_path, capsys):
    changed = change(table)
    path = tmp_path / "runs.parquet"
    path.write_bytes(to_parquet(changed.replace_schema_metadata(changed.schema.metadata or {b"other": b""})))
    assert archive.main(["restore", str(path), str(tmp_path / "back")]) == 2
    assert not (tmp_path / "back").exists()
    with pytest.raises(ConfigError, match=said):
        read_dataset(path)
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_bytes_are_noticed(file, tmp_path):
    raw = file.read_bytes()
    place = pq.ParquetFile(file).metadata.row_group(0).column(0).dictionary_page_offset + 40
    for text in (b"", b"PAR1", raw[:-100], raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match="not a dataset of runs"):
            read_dataset(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_dataset(tmp_path / "none.parquet")
