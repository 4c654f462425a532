"""Published systems: they count what was published, shrink in proportion, and words of the command line go first."""

import csv
import io

import pytest
import torch
import yaml
from corpus import QUICK, command, write_corpus

from lmablate import presets
from lmablate.budget import kv_bytes_per_token, parameters
from lmablate.config import compose
from lmablate.config.presets import LEAST_HEAD_DIM, head_width
from lmablate.core.axes import AXES
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.model import build_model
from lmablate.results import load_runs
from lmablate.results.arms import with_arms
from lmablate.runs.prepared import check_vocabulary, prepare_run
from lmablate.runs.run import execute

NAMES = presets.names()
CPU = ("runtime.device=cpu", "trainer.precision=fp32")


@pytest.mark.parametrize("name", NAMES)
def test_counts_what_was_published(name):
    """The closed form, the built model, and the published shape; sizes that are not certain are reported, not asserted."""
    fact, cfg = presets.published_facts(name), presets.config(name)
    counted = parameters(cfg).total
    assert sum(p.numel() for p in build_model(cfg, device="meta").parameters()) == counted
    if fact.unconfirmed is None:
        assert counted == fact.published_params + (fact.uncounted or 0)
    assert abs(fact.published_params / fact.announced - 1) < 0.06


def test_few_presets_are_uncertain_and_only_encoders_are_counted_otherwise():
    """Their differences are held against the released classes in test_encoders.py and test_replaced_tokens.py."""
    facts = {name: presets.published_facts(name) for name in NAMES}
    assert [name for name in NAMES if facts[name].unconfirmed] == ["dclm_7b", "yulan_12b", "afm_4_5b"]
    other = {name: f.uncounted for name, f in facts.items() if f.uncounted}
    assert other.pop("lamda_137b") == 32 * 128
    assert {presets.config(name).objective.kind for name in other} == {"mlm", "rtd"}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("opt_175b", 4_718_592),
        ("llama2_70b", 327_680),
        ("qwen1_5_72b", 2_621_440),
        ("llama2_7b", 524_288),
        ("gemma_7b", 458_752),
        ("palm_540b", 120_832),
    ],
)
def test_cache_of_published_systems(name, published):
    assert kv_bytes_per_token(presets.config(name)) == published


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_every_axis_and_its_gating(name):
    file = yaml.safe_load((CONF_DIR / "preset" / f"{name}.yaml").read_text())
    chosen = {key for entry in file["defaults"] for key in entry}
    plain = {"override /objective", "override /ffn"}  # said where they are not the default
    assert chosen - plain == {f"override /{axis}" for axis in AXES if axis != "aspect_ratio"} - plain
    cfg = presets.config(name)
    assert cfg.activation.gated == presets.published_facts(name).gated
    assert (cfg.model.vocab_size, cfg.published_vocab_size) == (presets.published_facts(name).vocab_size,) * 2


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("gemma2_27b", "glm_130b") else pytest.mark.slow) for n in NAMES]
)
@pytest.mark.parametrize("shrink", [None, "small"])
def test_the_table_is_made_of_what_hydra_composes(name, shrink):
    words = [f"preset={name}", *([f"shrink={shrink}"] if shrink else []), *CPU]
    ignored = {"overrides", "runtime"}
    composed, direct = compose(words), presets.config(name, shrink)
    a, b = (cfg.model_dump(exclude=ignored) for cfg in (composed, direct))
    a["choices"].pop("model"), b["choices"].pop("model")
    assert a == b


@pytest.mark.parametrize("shrink", ["tiny", "small", "base"])
@pytest.mark.parametrize("name", NAMES)
def test_shrinks_in_proportion(name, shrink):
    full, cfg = presets.config(name), presets.config(name, shrink)
    whole, part = full.model, cfg.model
    axes = [axis for axis in AXES if axis != "aspect_ratio"]
    assert {axis: cfg.choices[axis] for axis in axes} == {axis: full.choices[axis] for axis in axes}
    assert part.d_model == {"tiny": 128, "small": 384, "base": 768}[shrink]
    assert part.d_ff / part.d_model == pytest.approx(whole.d_ff / whole.d_model, rel=0.02)
    wide, narrow = (m.n_heads * m.head_dim / m.d_model for m in (whole, part))
    assert narrow == pytest.approx(wide, rel=0.13)
    group, published = part.n_heads // part.n_kv_heads, whole.n_heads // whole.n_kv_heads
    if whole.n_kv_heads == 1:
        assert part.n_kv_heads == 1
    elif part.d_model * wide / (2 * published) >= LEAST_HEAD_DIM:
        assert group == published
    else:
        assert 1 < group < published
    if window := full.attention.get("window"):
        assert cfg.attention["window"] / part.context_length == pytest.approx(window / whole.context_length, rel=0.02)
    same = (
        "tie_embeddings",
        "bias",
        "qkv_bias",
        "mlp_bias",
        "head_bias",
        "embedding_norm",
        "embedding_scale",
        "final_norm",
    )
    assert [getattr(part, key) for key in same] == [getattr(whole, key) for key in same]
    assert cfg.published_vocab_size is None
    build_model(cfg, device="meta")


@pytest.mark.parametrize("name", NAMES)
def test_a_shrunk_preset_computes(name):
    cfg = presets.config(name, "tiny")
    model, length = build_model(cfg), 9
    if model.encoder is not None:
        length += model.source_length
    logits = model(torch.arange(2 * length).view(2, length) % cfg.model.vocab_size)
    assert logits.shape == (2, 9, 1 if model.generator is not None else cfg.model.vocab_size)
    assert torch.isfinite(logits).all()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shrunk_preset_trains(name, corpus, tmp_path):
    quick = [word for word in QUICK if not word.startswith(("model.", "trainer.", "runtime.evaluations"))]
    sizes = ["trainer.steps=20", "trainer.batch_size=2"]
    words = [f"preset={name}", "shrink=tiny", *sizes, f"data.paths={corpus}/*.txt", f"results_dir={tmp_path}"]
    execute(prepare_run(compose([*quick, *words, *CPU])))
    (row,) = load_runs(tmp_path).to_dict("records")
    tokens = 20 * 2 * presets.config(name, "tiny").model.context_length
    assert (row["status"], row["preset"], row["tokens"]) == ("completed", name, tokens)
    assert row["val_loss"] < row["init_val_loss"]


def of(*words):
    return compose([*words, *CPU])


def test_an_option_of_the_command_line_brings_its_own_settings():
    cfg = of("preset=llama3_8b", "attention=mqa", "posemb=alibi", "norm=layer")
    assert (cfg.model.n_kv_heads, cfg.model.n_heads, cfg.posemb.keys()) == (1, 32, {"_target_"})
    assert cfg.norm == of("norm=layer").norm
    assert of("preset=gpt2", "attention=gqa").model.n_kv_heads == 2
    assert of("preset=gpt2", "shrink=small", "model.d_model=256", "attention=gqa").model.n_heads == 8


def test_a_key_of_the_command_line_goes_first():
    cfg = of(
        "preset=llama3_8b", "model.n_layers=3", "posemb.rope_theta=100.0", "model.tie_embeddings=true", "norm.eps=1e-3"
    )
    assert (cfg.model.n_layers, cfg.model.d_model, cfg.model.tie_embeddings) == (3, 4096, True)
    assert (cfg.posemb["rope_theta"], cfg.norm["eps"]) == (100.0, 1e-3)
    assert of("preset=gemma_2b", "model.embedding_scale=null").model.embedding_scale is None
    shrunk = of("preset=gemma_2b", "shrink=tiny", "model.d_model=256", "model.n_heads=8")
    assert (shrunk.model.d_model, shrunk.model.n_heads, shrunk.model.d_ff) == (256, 8, 8 * 256)


def test_other_activations_and_ratios_keep_the_parameters():
    """As without a preset: a plain FFN is 3/2 as wide as a gated one; a given d_ff or ratio is what is taken."""
    swiglu, gelu = of("preset=llama3_8b"), of("preset=llama3_8b", "activation=gelu")
    assert gelu.model.d_ff == 1.5 * swiglu.model.d_ff == 1.5 * 14336
    assert parameters(gelu) == parameters(swiglu)
    assert of("preset=gpt2", "model.ff_ratio=2.0").model.d_ff == 2 * 768
    assert of("preset=gpt2", "shrink=tiny", "model.d_ff=100").model.d_ff == 100


def test_scores_of_gemma_2_27b_follow_the_width_of_a_shrunk_head():
    """Gemma 2 27B scales by (d_model / n_heads)^(-1/2), not by head_dim."""
    cfg = presets.config("gemma2_27b", "tiny")
    assert presets.config("gemma2_27b").attention["scale"] == pytest.approx(144**-0.5)
    assert cfg.attention["scale"] == pytest.approx((cfg.model.d_model / cfg.model.n_heads) ** -0.5)
    assert head_width({"d_model": 96, "n_heads": 4}) == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["preset=gpt5"], "preset=gpt5: no such option, did you mean gpt2.*lmablate.presets lists them"),
        (["shrink=tiny"], "shrink=tiny shrinks a published system: add preset="),
        (
            ["preset=gpt2", "shrink=huge"],
            "shrink=huge: no such option; shrink has base, large, micro, nano, small, tiny",
        ),
        (["preset=gpt2", "model=small"], "preset=gpt2 brings its own sizes, and model=small sets them too"),
        (["preset=gpt2", "model.n_heads=7"], "model.d_model=768 is not a multiple of model.n_heads=7"),
    ],
    ids=str,
)
def test_bad_words_are_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        of(*words)


def test_a_preset_at_its_own_size_wants_its_own_vocabulary():
    cfg = of("preset=gpt2")
    check_vocabulary(cfg, 50257)
    check_vocabulary(cfg, None)
    check_vocabulary(of("preset=gpt2", "shrink=tiny"), 300)
    with pytest.raises(
        ConfigError, match=r"preset=gpt2 has a vocabulary of 50,257 .* tokenizer=bpe has 300: add shrink="
    ):
        check_vocabulary(cfg, 300)


def test_the_command_prints_every_system(capsys):
    assert presets.main(["--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["preset"] for row in table] == NAMES
    assert {row["preset"]: row["params"] for row in table}["llama3_8b"] == "8030261248"
    assert all(abs(float(row["diff_percent"])) < 6 and int(row["flops_per_token"]) > 0 for row in table)
    assert presets.main(["--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert len({line.count("|") for line in lines}) == 1
    assert presets.main([]) == 0
    assert f"{len(NAMES)} systems." in capsys.readouterr().out


@pytest.mark.slow
def test_plan_counts_and_train_refuses_a_preset_at_its_own_size(tmp_path):
    words = ("preset=palm_540b", f"results_dir={tmp_path}/results", *CPU)
    planned = command("lmablate.plan", *words)
    assert planned.returncode == 0, planned.stderr
    assert "540,356,474,880 parameters" in planned.stdout
    trained = command("lmablate.train", *words)
    assert trained.returncode == 2
    assert "has a vocabulary of 256,000" in trained.stderr


@pytest.mark.slow
def test_systems_at_equal_parameters_train_as_one_multirun(tmp_path):
    five = ("gpt2", "llama3_8b", "gemma2_9b", "pythia_12b", "palm_540b")
    text = write_corpus(tmp_path / "text")
    quick = [word for word in QUICK if not word.startswith(("model.", "runtime.wandb"))]
    words = (f"data.paths={text}/*.txt", f"results_dir={tmp_path}/results", "runtime.wandb=disabled", *CPU)
    grid = f"preset={','.join(five)}"
    done = command("lmablate.train", "-m", grid, "shrink=tiny", "budget=params", *quick, *words, timeout=500)
    assert done.returncode == 0, done.stderr
    runs = with_arms(load_runs(tmp_path / "results"))
    assert sorted(runs["arm"]) == sorted(five)
    assert runs["n_params"].max() / runs["n_params"].min() < 1.02
    assert set(runs.set_index("preset")["norm"].items()) >= {("gpt2", "layer"), ("gemma2_9b", "rms")}
