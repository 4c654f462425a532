"""Initial scales do not depend on the width: of the residual stream, of each branch, and of the logits, for every option."""

import pytest
import torch
from tiny import options
from variants import variant

from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model

AXES = ("norm", "norm_position", "activation", "posemb", "attention", "block_layout", "stability")
CASES = [(axis, option) for axis in AXES for option in options(axis)]
NARROW, WIDER = 32, [256, pytest.param(512, marks=pytest.mark.slow)]


def scales(cfg):
    """The root mean square of the stream before the blocks and after them, of the branches of the first block, and of the logits."""
    model, found = build_model(cfg).eval(), {}

    def note(name):
        def hook(module, inputs, output=None):
            value = inputs[0] if output is None else output
            found[name] = float(value.square().mean().sqrt())

        return hook

    model.blocks[0].register_forward_pre_hook(note("embedded"))
    model.blocks[-1].register_forward_hook(note("stream"))
    model.head.register_forward_pre_hook(note("hidden"))
    for name, module in model.blocks[0].named_modules():
        if name.endswith("out_proj"):
            module.register_forward_hook(note(name))
    tokens = torch.randint(
        cfg.model.vocab_size, (2, cfg.model.context_length), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        found["logits"] = float(model(tokens).square().mean().sqrt())
    return found


def at(width, **axes):
    head_dim = 16
    heads = {"n_heads": width // head_dim, "n_kv_heads": width // head_dim}
    if axes.get("attention") == "gqa":
        heads["n_kv_heads"] //= 2
    if axes.get("attention") == "mqa":
        heads["n_kv_heads"] = 1
    sizes = {"d_model": width, "head_dim": head_dim, "d_ff": width, "n_layers": 2, "vocab_size": 256, **heads}
    return variant(model={**sizes, **RULE}, **axes)


LOGITS = 0.1  # their size at the default
RULE = {"init_std": "0.5*fan_in", "head_std": f"{LOGITS}*fan_in", "embedding_std": "unit"}


@pytest.mark.parametrize("width", WIDER)
@pytest.mark.parametrize(("axis", "option"), CASES, ids=lambda x: x)
def test_the_default_rule_gives_every_width_the_same_scales(axis, option, width):
    try:
        narrow, wide = scales(at(NARROW, **{axis: option})), scales(at(width, **{axis: option}))
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    assert len(narrow) >= 6 and narrow.keys() == wide.keys()
    for place, size in narrow.items():
        assert 0.5 < wide[place] / size < 2, f"{place}: {size:.3g} at width {NARROW}, {wide[place]:.3g} at {width}"
    # The head's matrix is a tenth of what keeps a size, and a norm may damp what it reads.
    damped = min(1.0, wide["hidden"])
    assert 0.5 < wide["embedded"] < 2 and 0.5 < wide["logits"] / (LOGITS * damped) < 2


def test_the_default_is_that_rule():
    assert {key: getattr(compose().model, key) for key in RULE} == RULE


@pytest.mark.parametrize(("word", "wanted"), [("fan_in", 1 / 8), ("0.5*fan_in", 1 / 16), ("unit", 1.0), (0.3, 0.3)])
def test_rows_are_drawn_by_the_rule_and_matrices_by_theirs(word, wanted):
    stds = {"init_std": "2*fan_in", "head_std": None, "embedding_std": word}
    model = build_model(variant(posemb="learned", model={"d_model": 64, **stds}))
    for table in (model.embedding, model.posemb.table):
        assert float(table.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
    assert float(model.head.proj.weight.detach().std()) == pytest.approx(2 / 8, rel=0.05)


@pytest.mark.parametrize(("word", "wanted"), [("0.1*fan_in", 0.1 / 8), (0.3, 0.3)])
def test_the_matrix_of_the_logits_has_a_scale_of_its_own(word, wanted):
    model = build_model(variant(model={"d_model": 64, "init_std": "fan_in", "head_std": word}))
    assert float(model.head.proj.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
    assert float(model.blocks[0].ffn.branch.in_proj.weight.detach().std()) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize(
    ("scale", "tied", "wanted"), [("sqrt_d_model", False, 1 / 8), (4.0, False, 1 / 4), (4.0, True, 1 / 8)]
)
def test_unit_rows_count_the_scale_and_tied_ones_the_head(scale, tied, wanted):
    keys = {"d_model": 64, "embedding_std": "unit", "embedding_scale": scale, "tie_embeddings": tied}
    assert float(build_model(variant(model=keys)).embedding.weight.detach().std()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(("tied", "wanted"), [(False, 1.0), (True, 4 / 8)])
def test_positions_have_the_size_at_which_token_rows_enter(tied, wanted):
    keys = {"d_model": 64, "embedding_std": "unit", "embedding_scale": 4.0, "tie_embeddings": tied}
    model = build_model(variant(posemb="learned", model=keys))
    entering = model.rows(torch.arange(model.embedding.weight.shape[0])).detach().std()
    assert float(model.posemb.table.weight.detach().std()) == pytest.approx(wanted, rel=0.05)
    assert float(entering) == pytest.approx(wanted, rel=0.05)


def test_without_a_rule_of_their_own_rows_follow_the_matrices():
    table = build_model(variant(model={"init_std": 0.05, "embedding_std": None})).embedding.weight
    assert float(table.detach().std()) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("value", ["-0.1", "0", "fan_out", "-2*fan_in", "0*fan_in", "inf*fan_in", "unit", "true"])
def test_absurd_rules_are_refused_in_words(value):
    with pytest.raises(ConfigError, match=r"model\.init_std: .* is no standard deviation: give a positive number"):
        compose([f"model.init_std={value}"])


def test_equal_rules_are_one_run():
    assert compose(["model.init_std=1*fan_in"]).model.init_std == "fan_in"


def test_the_rate_follows_the_sizes_and_a_number_stays():
    rule = [
        "optim.lr_rule.base=0.01",
        "optim.lr_rule.d_model=64",
        "optim.lr_rule.tokens=2e6",
        "optim.lr_rule.batch_tokens=2048",
    ]
    powers = [
        f"optim.lr_rule.{name}_power={power}" for name, power in (("width", -1), ("tokens", -0.5), ("batch", 0.5))
    ]
    sizes = ["model.d_model=128", "trainer.tokens=8e6", "trainer.batch_size=64", "model.context_length=128"]
    cfg = compose([*rule, *powers, *sizes])
    assert cfg.optim.lr == pytest.approx(0.01 / 2 / 2 * 2, rel=5e-3) and "optim.lr=rule is 0.005" in cfg.lr_from
    assert (fixed := compose([*sizes, "optim.lr=3e-3"])).optim.lr == 3e-3 and fixed.lr_from is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lr=fast"], "optim.lr: fast is no learning rate"),
        (["optim.lr=-1"], "optim.lr: -1 is no learning rate"),
        (["optim.lr=1e-3", "optim.lr_rule.base=0.1"], "optim.lr_rule.base has no effect beside optim.lr=0.001"),
    ],
)
def test_absurd_rates_are_refused_in_words(overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose(overrides)
