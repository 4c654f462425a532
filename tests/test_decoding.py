"""Reading piece by piece against reading at once, the cache against its accounting, and draws against transformers."""

import pytest
import torch
from reference_models import randomise
from scipy import stats
from tiny import config, every_option, scaled_model
from variants import variant

from lmablate.budget import kv_bytes, kv_bytes_per_token
from lmablate.check.reading import CUTS, LONG, decoded, some_tokens
from lmablate.core.errors import ConfigError
from lmablate.decoding import Decoder, LayerCache, Sampling, generate
from lmablate.model import build_model, posemb
from lmablate.model.attention import AttentionSpan


def agree(cfg, prefix=None, kinds=tuple(CUTS)):
    for kind, gap in decoded(cfg, prefix, kinds).items():
        assert gap < 1e-4, kind


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(option for axis, option in every_option() if axis == "posemb"))
@pytest.mark.parametrize("attention", sorted(option for axis, option in every_option() if axis == "attention"))
def test_every_attention_with_every_position(attention, place):
    for stability in ("none",) if attention == "mla" else ("none", "all"):
        agree(variant(attention=attention, posemb=place, stability=stability, model={"bias": True}))


@pytest.mark.parametrize("attention", ["mla", "pattern", "gqa"])
def test_relative_positions_capped_scores_and_other_attention_together(attention):
    """The bias of a layer stands before the cap and is scaled with its scores, whatever is kept."""
    agree(variant(attention=attention, posemb="transformer_xl", stability="soft_cap"), kinds=("pieces",))
    agree(variant(attention=attention, posemb="t5"), kinds=("tokens",))


@pytest.mark.parametrize("pattern", ["ls", "s", "gl"])
def test_every_layer_has_a_cache_of_its_own_kind(pattern):
    cfg = config("attention=pattern", f"attention.pattern={pattern}")
    agree(cfg)
    sizes = {"g": LONG, "s": LONG, "l": 7}
    kept = [cache.slots for cache in Decoder(build_model(cfg).eval(), 1, LONG).caches]
    assert kept == [sizes[(2 * pattern)[layer]] for layer in range(2)]


def test_odd_scales_and_sizes():
    agree(
        config(
            "attention=gqa", "attention.scale=0.4", "model.embedding_scale=sqrt_d_model", "model.embedding_norm=true"
        )
    )
    agree(
        config(
            "attention=mla",
            "attention.q_rank=12",
            "attention.v_head_dim=6",
            "attention.scale=0.3",
            "model.logit_scale=0.5",
        )
    )
    agree(
        config("stability=qkv_norm", "stability.qk_norm_over=all_heads", "attention=gqa", "model.tie_embeddings=true")
    )


@pytest.mark.parametrize(
    "words",
    [("posemb=t5",), ("posemb=transformer_xl",), ("attention=sliding_window", "posemb=alibi"), ("attention=mla",)],
    ids=str,
)
def test_a_prefix_is_read_in_both_directions_and_then_kept(words):
    agree(config("objective=prefix", *words), prefix=5, kinds=("whole", "pieces"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    ["gemma2_2b", "gpt2", "bloom_176b", "glm_130b", "palm_8b", "gptj_6b", "gopher_280b", "gpt3_small", "mpt_30b"],
)
def test_presets(preset):
    agree(config(f"preset={preset}", "shrink=tiny", "model.d_model=128"), kinds=("pieces", "tokens"))


@pytest.mark.parametrize("attention", sorted(option for axis, option in every_option() if axis == "attention"))
def test_the_cache_takes_the_bytes_of_the_accounting(attention):
    cfg = variant(attention=attention)
    model = build_model(cfg).eval()
    length = cfg.model.context_length
    decoder = Decoder(model, 3, length, dtype=torch.bfloat16)
    assert decoder.n_bytes == sum(t.nbytes for cache in decoder.caches for t in cache.tensors) > 0
    assert decoder.n_bytes == 3 * kv_bytes(cfg, length)
    assert round(decoder.n_bytes / 3 / length) == kv_bytes_per_token(cfg)
    for longer in (5, 100):
        assert Decoder(model, 1, longer).n_bytes == kv_bytes(cfg, longer, number=4)
    before = decoder.n_bytes
    decoder.feed(some_tokens(3, length - 1))
    decoder.feed(some_tokens(3, 1))
    assert decoder.n_bytes == before


def test_a_cache_in_bf16_is_near_and_not_the_same():
    model = scaled_model(variant(attention="gqa"), 5.0).eval()
    tokens = some_tokens()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder(model, 2, LONG, dtype=dtype)
        decoder.feed(tokens[:, :20])
        found.append(decoder.feed(tokens[:, 20:21]))
    gap = float((found[0] - found[1]).abs().max() / found[0].abs().max())
    assert 1e-5 < gap < 2e-2


def test_a_rolling_cache_keeps_the_last_tokens_in_turn():
    cache = LayerCache(
        [(1, 1)], AttentionSpan(window=4), batch=1, length=50, dtype=torch.float32, device=torch.device("cpu")
    )
    start = 0
    for n in (3, 1, 1, 6, 2, 1, 9, 4):
        piece = torch.arange(start, start + n).float().view(1, 1, n, 1)
        read = cache.extend(start, (piece,))[0].flatten().long()
        end = start + n
        assert torch.equal(read, cache.positions(start, end, torch.device("cpu")))
        assert set(range(max(0, start - 3), end)) <= set(read.tolist()) <= set(range(max(0, start - 4), end))
        assert set(cache.tensors[0].flatten().long().tolist()[: min(end, 4)]) == set(range(max(0, end - 4), end))
        start = end


def test_angles_that_grow_with_the_text_make_it_read_anew():
    """Up to the original length of 10 nothing moves; after it dynamic NTK moves at every token, LongRoPE never again."""
    for option, later in (
        ("rope_dynamic", [True, True, True]),
        ("rope_longrope", [True, False, False]),
        ("rope", [False] * 3),
    ):
        part = build_model(variant(posemb=option)).posemb
        assert [part.moves(n, n + 1) for n in (3, 9)] == [False, False]
        assert [part.moves(n, n + 1) for n in (10, 11, 23)] == later


def test_what_cannot_be_read():
    model = build_model(variant()).eval()
    decoder = Decoder(model, 2, 8)
    decoder.feed(some_tokens(length=6))
    for tokens in (some_tokens(length=3), some_tokens(rows=1, length=1), some_tokens(length=2)[:, :0]):
        with pytest.raises(ValueError, match="of whose 8 tokens 6 are read"):
            decoder.feed(tokens)
    with pytest.raises(ValueError, match="first piece"):
        decoder.feed(some_tokens(length=1), prefix=1)
    with pytest.raises(ValueError, match="eval"):
        Decoder(model.train(), 1, 8)
    learned = Decoder(build_model(variant(posemb="learned")).eval(), 2, 30)
    learned.feed(some_tokens(length=24))
    with pytest.raises(ConfigError, match="rows for 24 positions and was given 25"):
        learned.feed(some_tokens(length=1))


def test_parts_that_say_only_how_a_whole_text_is_read_are_refused():
    class Turned(posemb.PosEmb):
        def rotate(self, q, k):
            return -q, -k

    model = build_model(variant()).eval()
    kind = type(model.posemb)
    model.posemb = Turned(None)
    with pytest.raises(ConfigError, match=r"Turned defines rotate\(\) and not rotate_chunk\(\)"):
        Decoder(model, 1, 8)
    model = build_model(variant()).eval()
    model.posemb.__class__ = type("Other", (kind,), {"embed": lambda self, x: 2 * x})
    with pytest.raises(ConfigError, match="not embed_chunk"):
        Decoder(model, 1, 8)


def test_greedy_generation_is_the_likeliest_token_of_the_whole_text_each_time():
    model = scaled_model(variant(attention="interleaved", posemb="rope_dynamic"), 8.0).eval()
    prompt = some_tokens(length=4)
    wanted = prompt
    with torch.no_grad():
        for _ in range(15):
            wanted = torch.cat((wanted, model(wanted)[:, -1:].argmax(-1)), -1)
    assert torch.equal(generate(model, prompt, 15, Sampling(temperature=0)), wanted)


@pytest.mark.parametrize(
    "words",
    [
        ("attention=gqa",),
        ("preset=gpt2", "shrink=tiny"),
        ("preset=gemma2_2b", "shrink=tiny", "model.d_model=128", "attention.window=6"),
        ("attention=mla", "attention.q_rank=10"),
        ("attention=sliding_window", "attention.window=5"),
        ("preset=bloom_176b", "shrink=tiny", "model.d_model=64", "model.n_heads=4"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.filterwarnings("ignore")
def test_greedy_generation_is_that_of_transformers(words):
    from lmablate.interop import to_hf

    model = randomise(build_model(config(*words)), scale=0.2)
    with torch.no_grad():  # or a tied head repeats the last token for ever
        model.embedding.weight.mul_(0.05)
    theirs = to_hf(model)
    prompt = some_tokens(length=6)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=14, do_sample=False)
    found = generate(model, prompt, 14, Sampling(temperature=0))
    assert torch.equal(found, wanted)
    assert len(set(found[0, 6:].tolist())) > 2, "a model that says one thing shows little"


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, None), (1.0, 5, None), (1.3, None, 0.8), (0.6, 9, 0.5), (1.0, 200, 1.0)],
)
def test_chances_are_those_of_transformers(temperature, top_k, top_p):
    from transformers.generation import logits_process

    logits = 3 * torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).double()
    wanted = logits_process.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        wanted = logits_process.TopKLogitsWarper(top_k)(None, wanted)
    if top_p is not None:
        wanted = logits_process.TopPLogitsWarper(top_p)(None, wanted)
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(found, wanted.softmax(-1), rtol=1e-12, atol=1e-15)


def test_draws_follow_their_chances_and_hang_on_seed_and_row_alone():
    model = randomise(build_model(variant()), scale=0.1)
    rows = 3000
    prompt = some_tokens(rows=1, length=3).expand(rows, -1)
    sampling = Sampling(0.8, top_k=6)
    found = generate(model, prompt, 1, sampling, seed=5)[:, -1]
    with torch.no_grad():
        chances = sampling.probabilities(model(prompt[:1])[:, -1])[0]
    counts = torch.bincount(found, minlength=64)
    assert not counts[chances == 0].any()
    kept = chances > 0
    assert stats.chisquare(counts[kept].numpy(), rows * chances[kept].numpy()).pvalue > 1e-3
    few = generate(model, prompt[:4], 8, sampling, seed=5)
    assert torch.equal(few[:, : 3 + 1], torch.cat((prompt[:4], found[:4, None]), -1))
    assert torch.equal(generate(model, prompt[:2], 8, sampling, seed=5), few[:2])
    assert not torch.equal(generate(model, prompt[:4], 8, sampling, seed=6), few)


def test_a_text_ends_where_its_end_is_sample():
    model = randomise(build_model(variant()), scale=0.1)
    prompt = some_tokens(rows=8, length=3)
    free = generate(model, prompt, 30, Sampling(), seed=2)
    end = int(free[0, 5])
    found = generate(model, prompt, 30, Sampling(), seed=2, end=end)
    for row, whole in zip(found.tolist(), free.tolist(), strict=True):
        stop = whole.index(end, 3) if end in whole[3:] else len(whole)
        assert row[:stop] == whole[: len(row)][:stop]
        assert set(row[stop:]) <= {end}
    one = generate(model, prompt[:1], 30, Sampling(), seed=2, end=end)
    assert one.shape[1] == free[0].tolist().index(end, 3) + 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"temperature": -1.0}, "--temperature -1: must be 0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_k": 0}, "--top-k 0: must keep at least one"),
        ({"top_p": 1.5}, "--top-p 1.5: must be above 0 and at most 1"),
        ({"temperature": 0.0, "top_k": 3}, "have no effect"),
    ],
)
def test_draws_that_mean_nothing(keys, told):
    with pytest.raises(ConfigError, match=told):
        Sampling(**keys)
