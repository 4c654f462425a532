"""Trained encoders, pairs of ELECTRA and models of two stacks as folders that transformers loads: the same logits, and back to the bit."""

import json

import pytest
import torch
from test_interop_export import refused, trained

from lmablate import export as command
from lmablate.core.errors import ConfigError
from lmablate.interop import export, from_hf, to_hf
from lmablate.interop.electra import from_electra
from lmablate.objective import objective_of

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ("model.d_model=64", "trainer.steps=3")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The run of a preset, and the folder that the command writes of it; each made once."""
    made = {}

    def make(preset, *words):
        if preset not in made:
            place = tmp_path_factory.mktemp(preset)
            run = trained(place, f"preset={preset}", "shrink=tiny", *SMALL, *words)
            assert command.main([str(run), "--out", str(place / "out")]) == 0
            made[preset] = run, place / "out"
        return made[preset]

    return make


def validation(run):
    """Model, configuration and the first two windows of the validation text as its objective reads them."""
    model, cfg, data = export.load_run(run)
    objective = objective_of(cfg)
    windows = (torch.from_numpy(x[:2]) for x in data.val_windows(cfg.model.context_length))
    return model, objective, objective.validation(*windows), data


def same_weights(ours, back):
    theirs = dict(back.named_parameters())
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.named_parameters())


@torch.no_grad()
def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder(exported):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    run, folder = exported("bert_base")
    model, objective, batch, data = validation(run)
    theirs, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "BertForMaskedLM"
    near(theirs(input_ids=batch.inputs).logits, model(batch.inputs))
    labels = batch.targets.masked_fill(batch.targets < 0, -100)
    nats = theirs(input_ids=batch.inputs, labels=labels).loss
    assert float(nats) == pytest.approx(float(objective(model, *batch).nats), rel=1e-5)
    assert tokenizer.mask_token_id == objective.mask_id == data.tokenizer.vocab_size == len(tokenizer) - 1
    assert tokenizer.mask_token_id in batch.inputs
    words = AutoTokenizer.from_pretrained(folder, split_special_tokens=False)("in the <|mask|>")["input_ids"]
    assert words == [*data.encode("in the "), objective.mask_id]
    same_weights(model, from_hf(folder))
    assert "pipeline_tag: fill-mask" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_pair_of_electra(exported, capsys):
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

    run, folder = exported("electra_small")
    model, objective, batch, _ = validation(run)
    generator = AutoModelForMaskedLM.from_pretrained(folder / "generator")
    everywhere = torch.arange(batch.inputs.shape[-1]).expand(2, -1)
    near(generator(input_ids=batch.inputs).logits, model.generator_logits(batch.inputs, everywhere))
    filled = objective.filled(model, batch.inputs, batch.targets, batch.noise)
    assert filled.replaced.any()
    discriminator = AutoModelForPreTraining.from_pretrained(folder / "discriminator")
    found = discriminator(input_ids=filled.text, labels=filled.replaced.long())
    near(found.logits, model(filled.text).squeeze(-1))
    assert float(found.loss) == pytest.approx(float(objective(model, *batch).nats), rel=1e-5)
    for part in ("generator", "discriminator"):
        assert AutoTokenizer.from_pretrained(folder / part).mask_token_id == objective.mask_id
    same_weights(model, from_electra(folder / "generator", folder / "discriminator"))
    facts = json.loads((folder / "lmablate.json").read_text())
    assert facts["architecture"] == "ElectraForMaskedLM and ElectraForPreTraining"

    assert command.main([str(run), "--out", str(folder)]) == 0  # over an earlier export
    assert "ElectraForMaskedLM and ElectraForPreTraining" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="takes it with its generator"):
        from_hf(folder / "discriminator")
    with pytest.raises(ConfigError, match=r"use lmablate\.interop\.electra\.to_electra"):
        to_hf(model)


@pytest.mark.slow
def test_a_model_of_two_stacks(exported):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    run, folder = exported("t5_base", "tokenizer=bpe", "tokenizer.vocab_size=300")
    model, objective, batch, data = validation(run)
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    source, target = batch.inputs.split([model.source_length, batch.inputs.shape[-1] - model.source_length], -1)
    near(theirs(input_ids=source, decoder_input_ids=target).logits, model(batch.inputs))
    length = batch.inputs.shape[-1]
    last = objective.first_id - objective.layout(length).spans
    names = {f"<extra_id_{i}>": objective.first_id - i for i in range(objective.first_id - last + 1)}
    assert {word: tokenizer.convert_tokens_to_ids(word) for word in names} == names
    assert len(tokenizer) == model.config.model.vocab_size == data.tokenizer.vocab_size + len(names)
    assert bool((target[:, 0] == theirs.config.decoder_start_token_id).all())  # what opens the spans
    assert theirs.generation_config.eos_token_id == last
    written = theirs.generate(input_ids=source, max_new_tokens=4, do_sample=False)
    assert bool((written[:, 0] == objective.first_id).all())
    step = model.logits(model.hidden_of_pair(source, written[:, :1]))[:, -1].argmax(-1)
    assert torch.equal(written[:, 1], step)
    same_weights(model, from_hf(folder))


@pytest.mark.slow
def test_experts_and_their_bias(exported):
    """DeepSeek-V3: the bias has moved in training, and decides what it decided."""
    from transformers import AutoModelForCausalLM

    few = ("ffn.n_experts=8", "ffn.k=3", "ffn.groups=4", "ffn.group_k=2", "ffn.first_dense=1", "ffn.bias_rate=0.02")
    run, folder = exported("deepseek_v3", *few)
    model, _, batch, _ = validation(run)
    biases = [value for name, value in model.named_parameters() if name.endswith("router.bias")]
    assert biases and all(bias.abs().max() >= 0.02 for bias in biases)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == "DeepseekV3ForCausalLM"
    assert theirs.config.moe_intermediate_size % 8  # rows that its grouped product refuses
    near(theirs(input_ids=batch.inputs).logits, model(batch.inputs))
    same_weights(model, from_hf(folder))


def test_a_run_that_no_encoder_expresses(capsys, tmp_path):
    strange = trained(tmp_path, "objective=mlm", "posemb=alibi", "trainer.steps=2")
    told = refused(capsys, strange, "--out", tmp_path / "out")
    assert "objective=mlm" in told or "posemb=alibi" in told
    assert not (tmp_path / "out").exists()
