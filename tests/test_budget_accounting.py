"""What a model costs, against torch's FLOP counter, tensors that were really made, and counting by hand."""

import pytest
import torch
from tiny import config, options, tokens_for
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from variants import variant

from lmablate.budget import (
    flops_per_token,
    forward_products,
    keys_read,
    kv_bytes_per_token,
    parameters,
)
from lmablate.budget.flops import SOFTMAX_OPERATIONS, softmax_flops, spans
from lmablate.budget.trace import Work, all_flops_per_token, trace
from lmablate.cli.front_door import main as front_door
from lmablate.model import build_model
from lmablate.model.precision import compute_dtype, set_compute_dtype
from lmablate.objective import Causal

SIZES = {
    "odd": {"d_model": 40, "head_dim": 6, "d_ff": 52, "context_length": 31, "bias": True},
    "tied": {
        "d_model": 24,
        "n_heads": 6,
        "head_dim": 10,
        "context_length": 50,
        "tie_embeddings": True,
        "vocab_size": 101,
    },
}


def sized(keys, **axes):
    """A variant with these sizes; options that set their own number of key/value heads keep it."""
    keys = dict(keys)
    if axes.get("attention") not in ("gqa", "mqa") and "n_heads" in keys:
        keys["n_kv_heads"] = keys["n_heads"]
    return variant(model=keys, **axes)


def counted(cfg):
    """torch's count of a forward pass over one text, per token."""
    model = build_model(cfg, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros((1, cfg.model.context_length), dtype=torch.long, device="meta"))
    return counter.get_total_flops() / cfg.model.context_length


@pytest.mark.parametrize("sizes", [pytest.param("odd", marks=pytest.mark.slow), "tied"])
@pytest.mark.parametrize("posemb", options("posemb"))
@pytest.mark.parametrize("attention", options("attention"))
def test_forward_flops_equal_torch_counter(attention, posemb, sizes):
    """The counter takes all T keys of every query; ours with T in the place of the keys read is the same number."""
    cfg = sized(SIZES[sizes], attention=attention, posemb=posemb)
    matrices, a_key = forward_products(cfg)
    length = cfg.model.context_length
    assert counted(cfg) == 2 * (matrices + sum(a_key) * length)
    read = sum(n * keys_read(length, *span) for n, span in zip(a_key, spans(cfg), strict=True))
    assert flops_per_token(cfg) == round(6 * (matrices + read))


def step_count(cfg, device):
    """torch's count of a forward and backward pass over one text, per token."""
    tokens = tokens_for(cfg, rows=1).to(device)
    with FlopCounterMode(display=False) as counter:
        Causal(z_loss=None)(build_model(cfg, device=device), tokens[:, :-1], tokens[:, 1:]).objective.backward()
    return counter.get_total_flops() / cfg.model.context_length


@pytest.mark.parametrize("axes", [{}, {"attention": "gqa"}, {"activation": "gelu", "attention": "mqa"}], ids=str)
def test_training_is_three_times_the_forward_pass(axes):
    """Attention in products of its own has all T keys. Of the CPU's fused kernel the counter knows nothing."""
    cfg = sized({"context_length": 24}, **axes)
    matrices, a_key = forward_products(cfg)
    assert step_count(cfg, "meta") == 6 * (matrices + sum(a_key) * 24)
    assert step_count(cfg, "cpu") == 6 * matrices


def test_backward_of_a_gpus_fused_attention_has_one_product_more_in_torch_counter():
    """Two products forward, and five backward where the arithmetic needs four: the kernel computes the scores anew."""
    b, h, t, d = 3, 4, 24, 8
    shape, a_key = (b, h, t, d), 2 * h * d
    assert sdpa_flop_count(shape, shape, shape) == b * t * 2 * a_key * t
    assert sdpa_backward_flop_count(shape, shape, shape, shape) == b * t * 2 * (5 / 2) * a_key * t


@pytest.mark.parametrize("attention", options("attention"))
def test_kv_bytes_are_those_of_the_tensors_that_are_cached(attention):
    """Keys and values as the projections make them, in bf16; of a layer with a window the last `window` rows."""
    cfg = sized({"context_length": 24, "n_layers": 4}, attention=attention)
    model = build_model(cfg).bfloat16()
    kept = []
    for block, (window, _) in zip(model.blocks, spans(cfg), strict=True):
        branch = block.attention.branch
        made = [m for name, m in branch.named_children() if name in ("k_proj", "v_proj", "kv_down")]
        assert len(made) == (1 if hasattr(branch, "kv_down") else 2)
        for module in made:
            module.register_forward_hook(lambda m, x, y, w=window: kept.append(y[:, -(w or 24) :].nbytes))
    model(tokens_for(cfg, rows=1)[:, :-1])
    assert kv_bytes_per_token(cfg) == round(sum(kept) / 24)


SAVED = {
    "default": ((), {}),
    "everything": (("stability=all", "norm=layer", "norm_position=sandwich", "posemb=alibi"), {}),
    "mla_xl_dropout": (("attention=mla", "posemb=transformer_xl", "model.dropout=0.1"), {}),
    "window_plain": (("attention=sliding_window", "activation=gelu", "block_layout=parallel"), {}),
    "chunked_loss": (("posemb=learned",), {"vocab_size": 200_000}),
    "bf16": (("trainer.precision=bf16",), {}),
}


@pytest.mark.parametrize("case", SAVED)
def test_activation_bytes_are_those_that_autograd_keeps(case):
    """A real step on real tensors, each storage once, weights and tables left out."""
    words, sizes = SAVED[case]
    cfg = config(*words)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update=sizes)})
    model = build_model(cfg)
    set_compute_dtype(model, compute_dtype(cfg.trainer.precision))
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept, alive = {}, []

    def pack(x):
        alive.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = tokens_for(cfg, rows=1)[:, :-1].clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = Causal(z_loss=cfg.stability.z_loss)(model, tokens, tokens).objective
    real = sum(size for place, size in kept.items() if place not in own)
    assert loss.isfinite()
    assert trace(cfg).saved_bytes == real


@pytest.mark.parametrize("words", [(), ("norm=layer", "norm_position=post"), ("norm_position=sandwich",)], ids=str)
def test_norms_cost_what_a_model_without_them_saves(words):
    """Nothing but the norms differs, so the rest of the step is equal to the byte."""
    with_norms, without = trace(config(*words)), trace(config(*words, "norm=none"))
    assert without.norms == Work(0, 0)
    assert with_norms.norms.bytes > 0
    assert with_norms.pointwise == without.pointwise
    assert with_norms.products == without.products


def test_traffic_of_rms_norm_by_hand():
    """fp32, T tokens of D channels, N = T D. Forward: the row norms read N and write T; their square, +eps, root,
    reciprocal and scale pass over T twice each; x times them reads N + T, writes N; the gain reads N + D, writes N.
    Backward: the gain reads N + D and writes N for x, reads 2N and writes N for itself, then sums N to D; the factors of
    the kernel are written (T), and it reads 2N + 2T and writes N + T."""
    cfg = config("norm_position=post")
    d, t = cfg.model.d_model, cfg.model.context_length
    n = t * d
    forward = (n + t) + 5 * 2 * t + (n + t + n) + (n + d + n)
    backward = (n + d + n) + (2 * n + n) + (n + d) + t + (2 * n + 2 * t + n + t)
    flops = (n + 5 * t + n + n) + (n + n + n + t + n)
    norms = 2 * cfg.model.n_layers
    assert trace(cfg).norms == Work(norms * flops, norms * 4 * (forward + backward))


def test_all_flops_are_the_products_and_what_is_left():
    """Statistical normalisation is a small share of FLOPs and a large one of traffic (Ivanov et al. 2021, arXiv
    2007.00072, table 1: 0.17 % of the FLOPs of BERT)."""
    cfg = variant(model={"d_model": 768, "n_layers": 2, "n_heads": 12, "n_kv_heads": 12, "head_dim": 64, "d_ff": 2048})
    step, length = trace(cfg), cfg.model.context_length
    every = all_flops_per_token(cfg, step)
    assert step.fused
    by_hand = SOFTMAX_OPERATIONS * 12 * 2 * (length + 1) / 2
    assert softmax_flops(cfg) == by_hand
    assert every == round(flops_per_token(cfg) + by_hand + (step.norms.flops + step.pointwise.flops) / length)
    assert 1.0 < every / flops_per_token(cfg) < 1.02
    share = step.norms.bytes / (step.norms.bytes + step.pointwise.bytes + step.products.bytes)
    assert 50 * step.norms.flops / length / every < share


def test_explicit_attention_shows_its_softmax():
    """A soft cap is computed outside the fused kernel, so its softmax is traced and not added."""
    assert not trace(config("stability=soft_cap")).fused
    assert trace(config()).fused


def test_embedding_and_active_parameters():
    cfg = variant(posemb="learned", model={"tie_embeddings": True})
    built = build_model(cfg, device="meta")
    tables = built.embedding.weight.numel() + built.posemb.table.weight.numel()
    n = parameters(cfg)
    assert n.embedding == tables
    assert n.active == n.total == sum(p.numel() for p in built.parameters())


@pytest.mark.slow
def test_the_account_in_one_command(capsys, tmp_path):
    from corpus import QUICK, write_corpus

    from lmablate.cli.budget import show

    text = write_corpus(tmp_path / "text")
    words = ["-m", "attention=mha,mqa", "seed=0,1", "budget=flops", *QUICK, f"data.paths={text}/*.txt"]
    assert front_door("budget", show, words) == 0
    printed = capsys.readouterr().out
    assert printed.count("KV-cache bytes per token") == 2  # one account a model, not a seed
    assert "attention=mqa" in printed
    assert "budget=flops: d_ff=" in printed
    assert "causal mask counts half the square" in printed
