"""Tokenizers give any text back, and the end token stands only at the end of a document."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from data_support import bpe, byte_level, files, pretrained, synthetic, texts, write
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from lmablate.data import DataError, prepare
from lmablate.data.tokenizer import ByteTokenizer, fingerprint, load_pretrained, loads, train_bpe

END = "<|endoftext|>"
STRANGE = [
    "naïve café über 日本語 🙂 \u202e",
    "tabs\tand\r\n\r\nlines  \n two  spaces ",
    "\x00\x7f\u00a0",
    END,
    "a" * 1000,
]


@pytest.fixture(scope="module")
def trained():
    return train_bpe([texts(50)], 320)


@pytest.fixture
def saved(tmp_path: Path, trained) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.dumps())
    return path


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_comes_back(trained, text: str):
    for tokenizer in (trained, ByteTokenizer()):
        (ids,) = tokenizer.encode([text.encode()])
        assert tokenizer.decode(ids.tolist()) == text


def test_the_words_of_the_end_token_are_ordinary_text(trained):
    for tokenizer in (trained, ByteTokenizer()):
        (ids,) = tokenizer.encode([f"before {END} after".encode()])
        assert tokenizer.eot_id not in ids.tolist()
        assert tokenizer.decode([*ids.tolist(), tokenizer.eot_id]) == f"before {END} after{END}"


def test_an_end_token_stands_after_each_document_and_nowhere_else(tmp_path: Path):
    source = files(write(tmp_path / "text", [f"{text} {END}" for text in texts(30)]), val_fraction=0.3, val_bytes=10**6)
    for tokenizer in (bpe(), byte_level()):
        data = prepare(source, tokenizer, context_length=16, cache=tmp_path / "cache")
        train, val = (int((ids == data.eot_id).sum()) for ids in (data.train, data.val))
        assert data.train[-1] == data.val[-1] == data.eot_id
        assert train + val == 30
        assert val > 3


def test_tokens_of_the_data_class_round_trip(tmp_path: Path):
    data = prepare(synthetic(), bpe(), context_length=16, cache=tmp_path)
    ids = data.encode("any text ü")
    assert isinstance(ids, list)
    assert data.decode(np.array(ids, dtype=np.uint16)) == "any text ü"
    assert max(ids) < data.vocab_size


def test_saved_and_loaded_are_equal(trained):
    for tokenizer in (trained, ByteTokenizer()):
        again = loads(tokenizer.dumps(), tokenizer.eot_id)
        assert (again.vocab_size, again.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)
        assert fingerprint(again) == fingerprint(tokenizer)
        for ours, theirs in zip(
            tokenizer.encode([t.encode() for t in STRANGE]), again.encode([t.encode() for t in STRANGE]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_bpe_is_made_of_pairs_that_are_frequent(trained):
    assert trained.vocab_size == 320
    (ids,) = trained.encode([b"the light of day"])
    assert len(ids) < 8, "common words became tokens"


def test_a_size_out_of_reach_is_said_once_and_the_real_one_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
):
    monkeypatch.setattr("lmablate.data.build._shown", set())
    source = files(write(tmp_path / "text", texts(20)), val_bytes=100)
    for _ in range(2):
        data = prepare(source, bpe(30_000), context_length=16, cache=tmp_path / "cache")
    assert 257 < data.vocab_size < 2000
    assert data.vocab_size == max(json.loads(data.tokenizer_path.read_text())["model"]["vocab"].values()) + 1
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "tokenizer.vocab_size=30000 was not reached" in said[0].getMessage()
    assert f"have {data.vocab_size} tokens" in said[0].getMessage()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bpe(256), "at least 257 tokens"),
        (lambda: byte_level().model_validate({"kind": "bytes", "vocab_size": 300}), "has 257 tokens.*got 300"),
        (lambda: pretrained("x.json", vocab_size=300), "size of the saved tokenizer, so 300 cannot be asked for"),
        (lambda: pretrained(""), "needs tokenizer.path"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message: str):
    with pytest.raises(ValidationError, match=message):
        make()


# --- saved tokenizers -------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_is_the_same_run_as_the_one_it_was_saved_from(tmp_path: Path):
    source = files(write(tmp_path / "text", texts(40)))
    trained = prepare(source, bpe(310), context_length=16, cache=tmp_path / "a")
    for path in (trained.tokenizer_path, trained.tokenizer_path.parent):
        loaded = prepare(source, pretrained(path), context_length=16, cache=tmp_path / "b")
        assert loaded.tokenizer_fingerprint == trained.tokenizer_fingerprint
        assert loaded.fingerprint == trained.fingerprint
        assert (loaded.vocab_size, loaded.eot_id) == (310, trained.eot_id)
        np.testing.assert_array_equal(loaded.train, trained.train)


def test_a_changed_tokenizer_file_is_noticed(tmp_path: Path, saved: Path):
    source = synthetic()
    first = prepare(source, pretrained(saved), context_length=16, cache=tmp_path / "cache")
    saved.write_text(train_bpe([texts(50)], 300).dumps())
    assert prepare(source, pretrained(saved), context_length=16, cache=tmp_path / "cache").vocab_size == 300
    assert first.vocab_size == 320


def test_the_end_token_is_found_or_named(tmp_path: Path, saved: Path):
    other = tmp_path / "other.json"
    other.write_text(saved.read_text().replace(END, "<the end>"))
    with pytest.raises(DataError, match=r"special tokens are <the end>.*tokenizer.end_token="):
        load_pretrained(pretrained(other))
    with pytest.raises(DataError, match=r"end_token=<no> is not a token.*<the end>"):
        load_pretrained(pretrained(other, end_token="<no>"))
    assert load_pretrained(pretrained(other, end_token="<the end>")).eot_id == 0
    other.write_text(saved.read_text().replace(END, "</s>"))
    assert load_pretrained(pretrained(other)).decode([0]) == "</s>"


def test_an_end_token_that_is_not_marked_special_is_still_ordinary_in_text(tmp_path: Path, saved: Path):
    saved.write_text(saved.read_text().replace('"special":true', '"special":false'))
    tokenizer = load_pretrained(pretrained(saved))
    assert tokenizer.eot_id not in tokenizer.encode([END.encode()])[0].tolist()


def test_padding_truncation_and_templates_of_a_saved_tokenizer_are_put_aside(tmp_path: Path, saved: Path):
    from tokenizers import processors

    inner = Tokenizer.from_file(str(saved))
    inner.enable_padding(length=50)
    inner.enable_truncation(5)
    inner.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    inner.save(str(saved))
    (ids,) = load_pretrained(pretrained(saved)).encode([b"some words that are more than five tokens"])
    assert len(ids) > 5
    assert 0 not in ids.tolist()


def word_level(size: int) -> Tokenizer:
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, size)}}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    return inner


def test_a_tokenizer_that_loses_text_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("lmablate.data.build._shown", set())
    word_level(70_000).save(str(tmp_path / "words.json"))
    data = prepare(synthetic(), pretrained(tmp_path / "words.json"), context_length=16, cache=tmp_path / "cache")
    assert "drops or changes characters" in caplog.text
    assert (data.vocab_size, data.eot_id) == (70_001, 70_000)
    assert data.train.dtype == data.val.dtype == np.uint32


def test_gaps_in_the_ids_count_for_the_size(tmp_path: Path, saved: Path):
    content = json.loads(word_level(10).to_str())
    content["added_tokens"][0]["id"] = content["model"]["vocab"]["</s>"] = 500
    (tmp_path / "gaps.json").write_text(json.dumps(content))
    tokenizer = load_pretrained(pretrained(tmp_path / "gaps.json"))
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (501, 500)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/tokenizer.json", "there is no file nowhere/tokenizer.json"),
        ("./nowhere", "there is no file nowhere"),
        ("{tmp}", r"there is no file .*tokenizer.json"),
        ("{tmp}/bad.json", r"bad.json is not a saved tokenizer"),
        ("{tmp}/latin.json", r"latin.json is not a saved tokenizer"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, path: str, message: str):
    (tmp_path / "bad.json").write_text('{"vocab": []}')
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=message):
        load_pretrained(pretrained(path.format(tmp=tmp_path)))
