"""Data as it is found: fields that change type, bad lines, archives and folders of others; refused by file, line and field."""

import gzip
import json
import logging
import random
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from data_support import byte_level, files, hub, pretrained, texts, write
from tokenizers import AddedToken, Tokenizer, models

from lmablate.data import DataError, prepare
from lmablate.data.local_files import LocalFiles
from lmablate.data.sources import open_source


def source(folder: Path, name: str, content: bytes | str, **changes: Any) -> LocalFiles:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return LocalFiles(files(folder / name, **changes))


def read(folder: Path, name: str, content: bytes | str, **changes: Any) -> list[str]:
    return [bytes(document).decode() for document in source(folder, name, content, **changes).documents()]


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


# --- only the field asked for matters ---------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Any, Any]] = {
    "null": (None, "x"), "number": (1, "x"), "date": ("2020-01-01", "x"), "boolean": (True, "x"), "object": ({"a": 1}, {"b": "x"}),
    "object_text": ({"a": 1}, "x"), "empty": ([], ["a"]), "objects": ([], [{"a": 1}]), "number_null": (1, None),
}  # fmt: skip


def test_other_fields_may_change_their_type_anywhere(tmp_path: Path):
    """Beyond 10 MB too, which was once read with the types of the first 10 MB."""
    early = json.dumps({"text": "word " * 200, **{key: first for key, (first, _) in CHANGES.items()}})
    late = json.dumps({"text": "end", **{key: then for key, (_, then) in CHANGES.items()}, "new": 1, "large": 10**30})
    found = read(tmp_path, "a.jsonl", (early + "\n") * 9500 + late + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > 10 << 20
    assert len(found) == 9501 and found[-1] == "end"


@pytest.mark.parametrize("first", [{"text": None}, {"id": 1}, {"text": "2020-01-01"}])
def test_the_text_itself_may_be_null_absent_or_a_date_for_long(tmp_path: Path, first: dict[str, Any]):
    padded = json.dumps(first | {"pad": "x" * 1000})
    reading = source(tmp_path, "a.jsonl", (padded + "\n") * 10500 + lines({"text": "end"}))
    found = [bytes(document).decode() for document in reading.documents()]
    assert found[-1] == "end" and set(found[:-1]) <= {"2020-01-01"}
    assert bool(found[:-1]) != any("10,500 of 10,501 rows have no text" in said for said in reading.notices())


def test_a_dot_leads_into_an_object_unless_a_name_has_it(tmp_path: Path):
    rows = lines({"doc": {"text": "in", "n": 1}, "text": "out"}, {"doc": {"text": "second"}}, {"doc": None})
    assert read(tmp_path, "a.jsonl", rows, text_field="doc.text") == ["in", "second"]
    assert read(tmp_path, "b.jsonl", lines({"doc.text": "flat", "doc": {"text": "in"}}), text_field="doc.text") == [
        "flat"
    ]
    pa.parquet.write_table(
        pa.table({"doc": [{"text": "in", "n": 1}, None, {"text": None, "n": 2}]}), tmp_path / "a.parquet"
    )
    column = LocalFiles(files(tmp_path / "a.parquet", text_field="doc.text"))
    assert [bytes(document) for document in column.documents()] == [b"in"]
    assert "2 of 3 rows have no text" in column.notices()[0]
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(DataError, match=rf"{name} has no field body; it has doc.text, doc.n.*data.text_field"):
            list(LocalFiles(files(tmp_path / name, text_field="body")).documents())
        with pytest.raises(DataError, match=r"the field doc must hold text.*text"):
            list(LocalFiles(files(tmp_path / name, text_field="doc")).documents())


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())], ids=str
)
def test_bytes_that_are_utf8_are_text(tmp_path: Path, kind: pa.DataType):
    pa.parquet.write_table(pa.table({"text": pa.array(["é".encode(), None, b"b"]).cast(kind)}), tmp_path / "a.parquet")
    assert [bytes(d) for d in LocalFiles(files(tmp_path / "a.parquet")).documents()] == ["é".encode(), b"b"]


# --- bad lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "a\n', r"it is not JSON \(character 10: Unterminated string"),
        ('{"text": \n', "it is not JSON"),
        ('{"text": 3}\n', "the field text must hold text, and holds the number 3: name another field"),
        ('{"text": true}\n', "holds true or false"),
        ('{"text": ["a"]}\n', "holds a list"),
        ('{"text": {"body": "a"}}\n', "holds an object with text.body"),
        ('["a"]\n', "must be an object with the field text, and is a list"),
        ('{"text": "a \\ud800 b"}\n', "half a surrogate pair"),
        (b'{"text": "caf\xe9"}\n', r"not UTF-8 text \(at byte 14 of the line\): convert the file, e.g. with iconv"),
        ('{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "too many lists"),
    ],
    ids=str,
)
def test_a_bad_row_is_named_by_the_line_of_its_file_and_left_out_on_demand(
    tmp_path: Path, bad: str | bytes, message: str
):
    raw = bad if isinstance(bad, bytes) else bad.encode()
    good = lines({"text": "fine"}).encode()
    content = good * 1200 + b"\n" + raw + good
    with pytest.raises(DataError, match=rf"/a.jsonl line 1,202: .*{message}.*data.skip_bad_lines=true"):
        read(tmp_path, "a.jsonl", content)
    skipping = source(tmp_path, "a.jsonl", content, skip_bad_lines=True)
    assert len(list(skipping.documents())) == 1201
    (said,) = skipping.notices()
    assert "1 of 1,202 rows are bad and left out" in said and "a.jsonl line 1,202" in said


def test_a_file_of_bad_rows_alone_is_refused_in_any_case(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"all 2 rows are bad; the first: .*a.jsonl line 1: the field text .* the number 3"
    ):
        read(tmp_path, "a.jsonl", lines({"text": 3}, "no row"), skip_bad_lines=True)


def test_bytes_that_are_no_text_are_left_out_on_demand(tmp_path: Path):
    pa.parquet.write_table(pa.table({"text": [b"a", b"\xff", None, b"b"]}), tmp_path / "a.parquet")
    skipping = LocalFiles(files(tmp_path / "a.parquet", skip_bad_lines=True))
    assert [bytes(document) for document in skipping.documents()] == [b"a", b"b"]
    assert "1 of 4 rows are bad" in skipping.notices()[0] and "a.parquet row 2" in skipping.notices()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"text": "a"},\n{"text": }\n]', "a.json line 3: it is not JSON"),
        ('[\n{"text": "a"}', "a.json line 2: it is not JSON"),
        ('["a"]\n["b"]\n', "a.json line 1: more follows the list"),
        (b'[\n{"text": "caf\xe9"}]', "a.json: it is not UTF-8"),
        ('[\n{"text": 3}]', "a.json line 2: the field text must hold text"),
        (lines({"text": None}, {"text": None}), "a.json: the field text is null in each of 2 rows"),
        (lines({"body": "a"}, {"id": 3}), "a.json has no field text; it has body: name one with data.text_field"),
    ],
    ids=str,
)
def test_json_that_is_not_a_row_a_line_is_refused_by_line_too(tmp_path: Path, content: str | bytes, message: str):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "a.json", content)


def test_a_long_row_of_a_list_is_read_in_blocks(tmp_path: Path):
    rows = [{"text": "a" * 3_000_000}, {"text": "é" * 700_000}, "b"]
    assert read(tmp_path, "a.json", json.dumps(rows, indent=1, ensure_ascii=False)) == [
        rows[0]["text"],
        rows[1]["text"],
        "b",
    ]  # type: ignore[index]


def test_what_was_left_out_is_said_again_when_nothing_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    content = lines(*({"text": text} for text in texts(30)), {"text": 3}, {"id": 1})
    (tmp_path / "a.jsonl").write_text(content)
    monkeypatch.setattr("lmablate.data.stamp._TICK_NS", -(10**9))  # as if written a while ago
    for patch in (lambda: None, lambda: monkeypatch.delattr(LocalFiles, "documents")):
        patch()
        caplog.clear()
        monkeypatch.setattr("lmablate.data.build._shown", set())
        prepare(
            files(tmp_path / "a.jsonl", skip_bad_lines=True), byte_level(), context_length=16, cache=tmp_path / "cache"
        )
        assert "1 of 32 rows are bad and left out" in caplog.text and "1 of 32 rows have no text" in caplog.text


# --- archives and folders ---------------------------------------------------------------------------------------------


def archive(path: Path, **members: str) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("_", "."), content)
    return str(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a_jsonl": "{}", "page_html": "<p>"}, r"a.zip/page.html: .html is not a format that is read from an archive"),
        ({"a_zip": "PK"}, r"a.zip/a.zip: .zip is not a format"),
        ({"LICENSE": "no ending", "b_txt": "text"}, "a.zip/LICENSE: a name without an ending is not a format"),
        ({}, "a.zip: the archive is empty"),
        ({"a_jsonl": '{"text": "a"}\n{"text": 3}\n'}, "a.zip/a.jsonl line 2: the field text must hold text"),
    ],
)
def test_what_an_archive_holds_is_refused_by_name(tmp_path: Path, members: dict[str, str], message: str):
    with pytest.raises(DataError, match=message):
        list(LocalFiles(files(archive(tmp_path / "a.zip", **members))).documents())


def test_an_encrypted_member_is_refused(tmp_path: Path):
    path = Path(archive(tmp_path / "a.zip", a_txt="text"))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.zip/a.txt is encrypted: unpack it"):
        list(LocalFiles(files(path)).documents())


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmablate.data.packed._FREE_BYTES", 1000)
    text = lines({"text": "a" * 2_000_000})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(text.encode())))
    (tmp_path / "a.jsonl.gz").rename(tmp_path / "a.jsonl.gz.gz")
    for path in (archive(tmp_path / "a.zip", a_jsonl=text), tmp_path / "a.jsonl.gz.gz"):
        with pytest.raises(DataError, match=r"bytes unpack to more than 500 times as many"):
            list(LocalFiles(files(path)).documents())


def test_the_torn_end_of_a_compressed_file_is_noticed(tmp_path: Path):
    raw = random.Random(0).randbytes(30_000).hex().encode()
    for name, packed in {
        "a.txt.gz": gzip.compress(raw),
        "a.txt.zst": pa.Codec("zstd").compress(raw, asbytes=True),
    }.items():
        with pytest.raises(DataError, match=f"{name}: cannot be read: "):
            read(tmp_path, name, packed[:-100])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_to_disk of ``datasets`` writes: two splits, and one alone."""
    from datasets import Dataset, DatasetDict
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    folder = tmp_path_factory.mktemp("saved")
    disable_progress_bar()
    rows = Dataset.from_dict({"text": texts(30), "n": [*range(30)]})
    DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(folder / "two")
    rows.shuffle(seed=0).save_to_disk(folder / "one", num_shards=2)
    enable_progress_bar()
    return folder


def test_a_folder_of_save_to_disk_is_the_same_text(saved: Path, tmp_path: Path):
    same = [files(write(tmp_path / "text", texts(30))), hub(name=str(saved / "two")), hub(name=str(saved / "one"))]
    made = [prepare(one, byte_level(), context_length=16, cache=tmp_path / "cache") for one in same]
    assert len({data.fingerprint for data in made}) == 1
    assert len(list(open_source(hub(name=str(saved / "two"), split="test", max_documents=2)).documents())) == 2


def test_a_folder_laid_out_as_on_the_hub_has_only_the_field_asked_for_read(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(
        lines(*({"text": t, "n": i} for i, t in enumerate(texts(9))), {"text": "x", "n": {}})
    )
    assert len(list(open_source(hub(name=str(tmp_path))).documents())) == 10


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("two", {"split": "valid"}, "there is no split valid; data.split is one of train, test"),
        ("one", {"split": "valid"}, "holds the split train alone: leave data.split=valid out"),
        ("one", {"revision": "v1"}, "is a folder here, which has no revision: leave data.revision=v1 out"),
        ("three", {}, r"data.name=.*three: there is no such folder \(looked from .*OWNER/NAME"),
        ("one", {"text_field": "n"}, "the field n must hold text in every row, and holds int64"),
    ],
)
def test_a_folder_without_what_was_asked_for_is_refused(saved: Path, name: str, changes: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        list(open_source(hub(name=str(saved / name), **changes)).documents())


def test_a_folder_as_path_says_how_its_files_are_named(saved: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"save_to_disk wrote it, so read it with data=hub data.name='.*two'"):
        LocalFiles(files(saved / "two"))
    write(tmp_path / "a/deep", texts(3), name="{}.jsonl.zst")
    for name in ("README.md", "a.csv", "b.csv", "c.csv", "d.csv"):
        (tmp_path / "a" / name).write_text("beside")
    with pytest.raises(DataError, match=r"is a folder: say which files, e.g. data.paths='.*/a/\*\*/\*.jsonl.zst'"):
        LocalFiles(files(tmp_path / "a"))


# --- what cannot be done with the text is said ------------------------------------------------------------------------


def test_validation_text_that_is_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("lmablate.data.build._shown", set())
    for _ in range(2):  # read anew, and from the store
        text = files(write(tmp_path / "text", texts(30)), val_bytes=10**9)
        data = prepare(text, byte_level(), context_length=16, cache=tmp_path / "cache")
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        f"data.val_bytes=1000000000 is not reached: the validation text has {data.val_bytes} bytes, all that data.val_fraction"
        in said
    )


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("</s>", 0.0), ("a", -1.0)]),
        models.WordLevel({"</s>": 0, "a": 1}),
        models.WordPiece({"</s>": 0, "a": 1}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_saved_tokenizer_without_a_token_for_a_character_is_named(tmp_path: Path, model: Any):
    inner = Tokenizer(model)
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    inner.save(str(tmp_path / "few.json"))
    text = files(write(tmp_path / "text", ["aaa", "aéa", "a"]))
    with pytest.raises(DataError, match=r"tokenizer.path=.*few.json has no token for '(é|aaa|aéa)'.*tokenizer=bpe"):
        prepare(text, pretrained(tmp_path / "few.json"), context_length=1, cache=tmp_path / "cache")
