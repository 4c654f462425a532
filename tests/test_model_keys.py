"""Keys of the model and optimizer groups that no axis has: biases by place, both ends of the model, and how decay is scaled."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference_models import close, randomise
from tiny import SmallText, config, tokens_for
from torch import nn

from lmablate.budget import parameters
from lmablate.config import compose
from lmablate.core.errors import ConfigError
from lmablate.model import build_model
from lmablate.model.primitives import Bias
from lmablate.objective import Causal
from lmablate.schema.identity import run_id
from lmablate.training.optim import build_optimizer, lr_factor, set_lr


def ends(*words):
    """A randomised model, its tokens, what enters the first block and what leaves the last one."""
    cfg = config(*words)
    model = randomise(build_model(cfg)).eval()
    seen = {}
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.update(first=args[0]))
    model.blocks[-1].register_forward_hook(lambda module, args, out: seen.update(last=out))
    tokens = tokens_for(cfg)[:, :-1]
    return cfg, model, tokens, model(tokens), seen


def layer_norm(x, norm):
    return F.layer_norm(x, x.shape[-1:], norm.gain.weight, norm.bias.weight, 1e-5)


@pytest.mark.parametrize(("word", "factor"), [("0.3", 0.3), ("sqrt_d_model", math.sqrt(32))])
def test_embedding_scale_and_norm(word, factor):
    """BLOOM and BERT: the norm comes after the positions are added; Gemma: rows times sqrt(d_model) before that."""
    words = ("norm=layer", "posemb=learned", f"model.embedding_scale={word}", "model.embedding_norm=true")
    _, model, tokens, _, seen = ends(*words)
    rows = factor * model.embedding.weight[tokens] + model.posemb.table.weight[: tokens.shape[-1]]
    close(seen["first"], layer_norm(rows, model.embedding_norm))


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_scaled_then_biased_then_capped(tied):
    words = ("norm=layer", "stability=soft_cap", "stability.final_soft_cap=2.0", f"model.tie_embeddings={tied}")
    _, model, _, logits, seen = ends(*words, "model.logit_scale=0.25", "model.head_bias=true")
    matrix = model.embedding.weight if tied else model.head.proj.weight
    plain = 0.25 * layer_norm(seen["last"], model.final_norm) @ matrix.T + model.head.bias.weight
    close(logits, 2 * torch.tanh(plain / 2))


def test_final_norm_is_there_where_it_is_asked_for():
    for position, asked, there in (("post", "true", True), ("post", "null", False), ("pre", "false", False)):
        _, model, _, logits, seen = ends(f"norm_position={position}", "norm=layer", f"model.final_norm={asked}")
        stream = layer_norm(seen["last"], model.final_norm) if there else seen["last"]
        close(logits, stream @ model.head.proj.weight.T)


PLACES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": ("attention.branch.out_proj",),
    "mlp": ("in_proj", "gate_proj", "ffn.branch.out_proj"),
}


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_bias_switch_moves_its_place_alone(place, default):
    cfg = config(f"model.bias={default}", f"model.{place}_bias={not default}")
    model = build_model(cfg, device="meta")
    biased = {name.removesuffix(".bias") for name, module in model.named_modules() if isinstance(module, Bias)}
    linear = {name for name, module in model.named_modules() if name.startswith("blocks.") and name.endswith("_proj")}
    mine = {name for name in linear if name.endswith(PLACES[place])}
    assert mine and mine != linear
    assert biased == (linear - mine if default else mine)


COUNTED = [
    ("model.qkv_bias=true", "attention=gqa"),
    ("model.out_bias=true", "model.mlp_bias=true"),
    ("model.bias=true", "model.qkv_bias=false", "attention=mla", "attention.kv_rank=12", "attention.rope_head_dim=4"),
    ("model.head_bias=true",),
    ("model.head_bias=true", "model.tie_embeddings=true"),
    ("model.embedding_norm=true", "norm=layer"),
    ("model.final_norm=false",),
    ("norm_position=deepnorm", "model.final_norm=true"),
    ("norm=layer", "norm.gain=false"),
    ("norm.gain=false", "stability=qk_norm"),
    ("norm.unit_offset=true",),
]


@pytest.mark.parametrize("words", COUNTED, ids=" ".join)
def test_closed_form_equals_built(words):
    cfg = config(*words)
    model = build_model(cfg, device="meta")
    tables = model.embedding.weight.numel() + sum(p.numel() for p in model.head.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert parameters(cfg) == (total, total - tables)


def test_unit_offset_is_the_same_function():
    """A gain of 1 + w with w = g - 1 gives what a gain of g gives."""
    cfg = config("norm=layer", "norm.unit_offset=true")
    ours, plain = build_model(cfg), randomise(build_model(config("norm=layer")))
    with torch.no_grad():
        for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
            mine.copy_(theirs - 1 if name.endswith("gain.weight") else theirs)
    tokens = tokens_for(cfg)[:, :-1]
    close(ours(tokens), plain(tokens))


@pytest.mark.parametrize(("rule", "beta"), [("deepnet", (8 * 3) ** -0.25), ("glm", (2 * 3) ** -0.5)])
def test_deepnorm_draws_by_xavier_and_the_value_path_smaller_by_beta(rule, beta):
    cfg = config("model.d_ff=256", "attention=gqa", "norm_position=deepnorm", f"norm_position.rule={rule}")
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"d_model": 128, "n_layers": 3, "head_dim": 32})})
    for block in build_model(cfg).blocks:
        for branch in (block.attention.branch, block.ffn.branch):
            for name, linear in branch.named_children():
                if name.endswith("_proj"):
                    rows, columns = linear.weight.shape
                    wanted = (2 / (rows + columns)) ** 0.5 * (1 if name in ("q_proj", "k_proj") else beta)
                    assert abs(linear.weight.std() - wanted) < 5 * wanted / (2 * rows * columns) ** 0.5, name


def test_head_bias_is_in_the_loss_of_a_large_vocabulary(monkeypatch):
    monkeypatch.setattr("lmablate.objective.likelihood.worth_chunking", lambda rows, vocab_size: True)
    cfg = config("model.head_bias=true")
    model, batch = randomise(build_model(cfg)), tokens_for(cfg)
    loss = Causal(z_loss=None)(model, batch[:, :-1], batch[:, 1:])
    close(loss.nats, F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()))
    loss.objective.backward()
    assert model.head.bias.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("decay", "share"), [("null", 0.01 * 0.2), ("coupled", 0.01 * 0.2), ("independent", 0.2)])
def test_what_a_step_without_gradient_takes_from_a_weight(decay, share):
    """Loshchilov and Hutter 2017, algorithm 2: ``w - eta_t lambda w``, in torch with eta_t times lr."""
    cfg = config("optim.lr=0.01", "optim.weight_decay=0.2", f"optim.decay={decay}", "schedule.warmup_steps=2")
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(nn.ParameterList([weight]), cfg.optim)
    kept = 1.0
    for step in range(3):
        factor = lr_factor(cfg.schedule, step, cfg.trainer.steps)
        set_lr(optimizer, factor * cfg.optim.lr)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        kept *= 1 - factor * share
    close(weight, torch.full((2, 2), kept))


def test_lookup_tables_can_be_spared_from_decay():
    """A step without gradients leaves them, a tied head and learned positions included, and shrinks all other matrices."""
    cfg = config(
        "optim.decay_embeddings=false", "model.tie_embeddings=true", "posemb=learned", "optim.weight_decay=0.2"
    )
    model = randomise(build_model(cfg))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, cfg.optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {"embedding.weight"} < kept
    assert not any(
        p.ndim >= 2
        for name, p in model.named_parameters()
        if name in kept and "embedding" not in name and "table" not in name
    )
    assert {name for name, p in model.named_parameters() if p.ndim < 2} < kept


class Store(SmallText):
    fingerprint, tokenizer_fingerprint = "text", "tokenizer"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((), ("model.bias=false", "model.head_bias=false", "model.qkv_bias=false")),
        ((), ("optim.decay=coupled", "optim.decay_embeddings=true")),
        (("model.bias=true",), ("model.qkv_bias=true", "model.out_bias=true", "model.mlp_bias=true")),
        (("model.bias=true", "model.qkv_bias=false"), ("model.out_bias=true", "model.mlp_bias=true")),
    ],
    ids=str,
)
def test_one_run_has_one_identity_however_it_is_written(one, other):
    same = [run_id(config(*words), Store()) for words in (one, other)]
    assert same[0] == same[1]
    assert run_id(config(*one, "model.logit_scale=0.5"), Store()) != same[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("norm=none", "model.embedding_norm=true"), "model.embedding_norm=true has no effect with norm=none"),
        (("norm=none", "model.final_norm=false"), "model.final_norm=false has no effect with norm=none"),
        (("norm.gain=false", "norm.unit_offset=true"), "norm.gain=false leaves it out"),
        (
            ("norm_position=deepnorm", "model.depth_scaled_init=true"),
            "model.depth_scaled_init=true has no effect beside",
        ),
        (("norm_position=deepnorm", "block_layout=parallel2"), "norm_position=post and deepnorm have one norm"),
        (("norm_position=deepnorm", "norm_position.rule=own"), "norm_position.rule=own"),
        (("model.embedding_scale=0.0",), "model.embedding_scale"),
        (("optim.decay=none",), "optim.decay=none"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_words(words, told):
    with pytest.raises(ConfigError, match=told):
        compose([*words, "runtime.device=cpu"])
