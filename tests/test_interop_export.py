"""A trained run as a folder that transformers loads: the same tokens, the same logits, the same validation loss."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus import QUICK, write_corpus

from lmablate import export as command
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.data.tokenizer import ByteTokenizer, load_pretrained, train_bpe
from lmablate.interop import export, from_hf
from lmablate.interop.tokenizer import as_hf, byte_characters
from lmablate.runs.prepared import prepare_run
from lmablate.runs.run import execute
from lmablate.runs.run_directory import RunDirectory
from lmablate.schema.data import PretrainedTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
HARD = "Plain text, Ünïcödé \U0001f600, tabs\tand\r\nlines  , <|endoftext|> in words, and 0123456789."


def trained(folder, *words):
    """A run of a few steps on a small text; returns its folder."""
    write_corpus(folder / "text")
    cfg = compose(
        [*QUICK, f"data.paths='{folder}/text/*.txt'", f"results_dir={folder}/results", "trainer.precision=fp32", *words]
    )
    execute(prepare_run(cfg))
    return next((folder / "results").glob("*/result.json")).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def exported(run):
    out = run.parent.parent / "out"
    assert command.main([str(run), "--out", str(out)]) == 0
    return out


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def val_loss_there(model, tokenizer, data, context_length):
    """Nats a token of the validation text: documents encoded there, each followed by their end token, in windows that
    begin with one."""
    documents = np.split(data.val, np.flatnonzero(data.val == data.eot_id) + 1)
    ids = []
    for document in documents:
        ended = len(document) and document[-1] == data.eot_id
        ids += tokenizer(data.decode(document[:-1] if ended else document))["input_ids"]
        ids += [tokenizer.eos_token_id] if ended else []
    assert ids == data.val.tolist()
    stream, nats = torch.tensor([tokenizer.bos_token_id, *ids]), 0.0
    with torch.no_grad():
        for start in range(0, len(ids), context_length):
            window = stream[start : start + context_length + 1]
            logits = model(input_ids=window[None, :-1]).logits[0]
            nats += float(F.cross_entropy(logits, window[1:], reduction="sum"))
    return nats / len(ids)


def test_the_folder_gives_the_logits_and_the_loss_of_the_run(run, exported):
    model, cfg, data = export.load_run(run)
    theirs, tokenizer = loaded(exported)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    tokens = torch.from_numpy(data.val_windows(cfg.model.context_length)[0][:2])
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=tokens).logits, model(tokens), rtol=1e-4, atol=1e-5)
    row = RunDirectory(run.parent, run.name).read_result()
    there = val_loss_there(theirs, tokenizer, data, cfg.model.context_length)
    assert there == pytest.approx(row["val_loss"], rel=1e-5)
    assert there < math.log(data.vocab_size)  # it has learnt something


def test_the_folder_says_what_it_is(run, exported):
    facts = json.loads((exported / "lmablate.json").read_text())
    assert facts["run_id"] == run.name
    assert facts["architecture"] == "LlamaForCausalLM"
    card = (exported / "README.md").read_text()
    assert "lmablate train data=files tokenizer=bytes" in card
    assert str(run.parent.parent) not in card + (exported / "lmablate.json").read_text()  # no path of this machine
    assert (exported / "model.safetensors").is_file()
    assert not list(exported.glob("*.bin"))
    theirs, tokenizer = loaded(exported)
    assert theirs.config.eos_token_id == theirs.config.bos_token_id == tokenizer.eos_token_id == 256
    assert theirs.generation_config.eos_token_id == 256
    assert tokenizer.model_max_length == 32
    text = tokenizer.decode(theirs.generate(torch.tensor([[256, 105, 110]]), max_new_tokens=5, do_sample=False)[0])
    assert text.startswith("<|endoftext|>in")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("tokenizer=bpe", "tokenizer.vocab_size=300", "preset=gpt2", "shrink=tiny"),
        ("tokenizer=bpe", "tokenizer.vocab_size=300", "preset=gemma2_9b", "shrink=tiny"),
        ("tokenizer=bpe", "tokenizer.vocab_size=300", "preset=pythia_12b", "shrink=tiny"),
        ("preset=gptj_6b", "shrink=tiny"),
        ("preset=bloom_176b", "shrink=tiny", "tokenizer=bpe", "tokenizer.vocab_size=300"),
        ("preset=galactica_120b", "shrink=tiny"),
        ("preset=falcon_7b", "shrink=tiny", "tokenizer=bpe", "tokenizer.vocab_size=300"),
        ("preset=ernie4_5_21b_a3b", "shrink=tiny", "ffn.n_experts=8", "ffn.bias_rate=0.02"),
        ("attention=mla", "attention.rope_head_dim=4", "attention.kv_rank=12"),
        ("norm_position=output", "stability=qk_norm", "stability.qk_norm_over=all_heads"),
    ],
    ids=lambda words: words[0] if "tokenizer" not in words[0] else words[2],
)
def test_other_runs(tmp_path, words):
    sizes = (
        ["model.d_model=128"] if any(word.startswith("preset") for word in words) else []
    )  # whole heads of every preset
    run = trained(tmp_path, *words, *sizes)
    done = export.export_run(run, tmp_path / "out")
    assert done.difference < 1e-4
    _, cfg, data = export.load_run(run)
    theirs, tokenizer = loaded(done.folder)
    row = RunDirectory(run.parent, run.name).read_result()
    assert val_loss_there(theirs, tokenizer, data, cfg.model.context_length) == pytest.approx(row["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_class_that_no_auto_class_knows_is_loaded_as_itself(tmp_path):
    run = trained(tmp_path, "preset=mistral_small4_119b", "shrink=tiny", "ffn.n_experts=8", "model.d_model=128")
    done = export.export_run(run, tmp_path / "out")
    assert done.difference < 1e-4
    assert "Load it with `Mistral4ForCausalLM`" in (done.folder / "README.md").read_text()
    ours, back = export.load_run(run)[0], from_hf(done.folder)
    assert all(torch.equal(value, dict(back.named_parameters())[name]) for name, value in ours.named_parameters())


def test_the_byte_tokenizer_is_a_tokenizer_of_bytes(tmp_path):
    ours = ByteTokenizer()
    theirs = as_hf(ours, 64)
    assert theirs(HARD)["input_ids"] == list(HARD.encode())
    assert theirs.decode(list(HARD.encode())) == HARD
    assert len(theirs) == ours.vocab_size
    assert len(set(byte_characters())) == 256
    assert not any(character.isspace() for character in byte_characters())


def test_a_trained_tokenizer_gives_the_same_ids(tmp_path):
    ours = train_bpe([[HARD] * 3, ["the words and the lines"] * 3], 290)
    as_hf(ours, 64).save_pretrained(tmp_path)
    _same_ids(ours, tmp_path)


def test_a_saved_tokenizer_that_puts_tokens_around_a_text_loses_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["<s>", "</s>", "a", "b", "[UNK]"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    inner.save(str(tmp_path / "tokenizer.json"))
    keys = {"kind": "pretrained", "revision": None, "end_token": None, "vocab_size": None}
    ours = load_pretrained(PretrainedTokenizer(path=str(tmp_path / "tokenizer.json"), **keys))
    as_hf(ours, 64).save_pretrained(tmp_path / "out")
    theirs = _same_ids(ours, tmp_path / "out", "a b a")
    assert theirs("a b")["input_ids"] == [2, 3]
    assert theirs.eos_token == "</s>"


def _same_ids(ours, folder, text=HARD):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(text)["input_ids"] == ours.encode([text.encode()])[0].tolist()
    assert theirs.bos_token_id == theirs.eos_token_id == ours.eot_id
    return theirs


def refused(capsys, *words):
    """The message of a command that exits with 2."""
    assert command.main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    return told


def test_an_export_is_replaced_and_nothing_else_is(run, exported, capsys, tmp_path):
    assert command.main([str(run), "--out", str(exported)]) == 0
    (tmp_path / "diary.txt").write_text("mine")
    assert "exists and is no earlier export" in refused(capsys, run, "--out", tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_folders_that_hold_no_run(run, capsys, tmp_path):
    assert "no run is there" in refused(capsys, tmp_path / "nowhere", "--out", tmp_path / "out")
    empty = tmp_path / "run"
    empty.mkdir()
    (empty / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "there is no checkpoint in" in refused(capsys, empty, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_no_class_expresses(run, capsys, tmp_path):
    strange = trained(tmp_path, "posemb=t5", "trainer.steps=2")
    assert "posemb=t5" in refused(capsys, strange, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_text_that_changed_since_the_run(capsys, tmp_path):
    run = trained(tmp_path, "tokenizer=bpe", "tokenizer.vocab_size=300", "trainer.steps=2")
    for path in (tmp_path / "text").glob("*.txt"):
        path.write_text(path.read_text().upper())
    assert "its tokenizer was made from a text that is not there any more" in refused(
        capsys, run, "--out", tmp_path / "out"
    )


def test_an_export_that_computes_something_else_is_not_written(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export, "NEAR", 0.0)
    assert "gives other logits than the run" in refused(capsys, run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pushing(run, exported, monkeypatch, capsys):
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    assert "give the name as user/model" in refused(capsys, run, "--out", exported, "--push", "nameless")
    assert "--public says how to push" in refused(capsys, run, "--out", exported, "--public")
    monkeypatch.setattr(export, "hub_answers", lambda: False)
    told = refused(capsys, run, "--out", exported, "--push", "me/model")
    assert "does not answer" in told or "is set" in told
    assert "can be pushed later" in told

    calls = []

    class Hub:
        def whoami(self):
            if "login" in calls:
                raise LocalTokenNotFoundError("no token")

        def create_repo(self, name, *, private, exist_ok):
            calls.append((name, private, exist_ok))

        def upload_folder(self, *, folder_path, repo_id, commit_message):
            calls.append((folder_path, repo_id))

    monkeypatch.setattr(export, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert command.main([str(run), "--out", str(exported), "--push", "me/model"]) == 0
    assert calls == [("me/model", True, True), (exported, "me/model")]
    assert "https://huggingface.co/me/model" in capsys.readouterr().out
    calls.append("login")
    assert "nobody is logged in" in refused(capsys, run, "--out", exported, "--push", "me/model")


def test_errors_of_loading_a_run_are_ours(tmp_path):
    with pytest.raises(ConfigError, match="no run is there"):
        export.load_run(tmp_path)
