"""Published systems that transformers has no class for: whole models against formulas written here from their papers.

Each formula is in float64 over explicit scores, reads nothing of ours but the weights, and every gain and bias is random.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from reference_models import close, randomise

from lmablate import presets
from lmablate.model import build_model

T = 40
N_BUCKETS, MAX_DISTANCE = 32, 128  # of T5 (Raffel et al. 2019, section 2.1)


class Weights:
    """The weights of a model by their names, in float64; ``w("0.ffn.out_proj")`` is a matrix with its bias."""

    def __init__(self, model):
        self.all = {name: value.detach().double() for name, value in model.named_parameters()}

    def get(self, name):
        return self.all.get(f"{name}.weight")

    def linear(self, x, name):
        bias = self.get(f"{name}.bias")
        y = x @ self.get(name).T
        return y if bias is None else y + bias

    def layer_norm(self, x, name, eps):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * self.get(f"{name}.gain")
        bias = self.get(f"{name}.bias")
        return y if bias is None else y + bias

    def rms_norm(self, x, name, eps):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.get(f"{name}.gain")


def gelu(x):
    """``x Phi(x)`` (Hendrycks and Gimpel 2016, arXiv 1606.08415, eq. 1)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def swish(x):
    return x / (1 + torch.exp(-x))


def gated(fn):
    """Shazeer 2020, arXiv 2002.05202, eqs. 5 and 6."""
    return lambda w, x, at: w.linear(
        fn(w.linear(x, f"{at}.gate_proj")) * w.linear(x, f"{at}.in_proj"), f"{at}.out_proj"
    )


def plain(fn):
    return lambda w, x, at: w.linear(fn(w.linear(x, f"{at}.in_proj")), f"{at}.out_proj")


def split(x, n):
    return torch.stack(x.chunk(n, -1))  # [H, T, head_dim]


def turn(x, theta=10000.0):
    """Rotary positions as a multiplication by ``exp(i t w)`` (Su et al. 2021, arXiv 2104.09864, eq. 13)."""
    half = x.shape[-1] // 2
    w = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * w
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


def dot(s, q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def rotary(s, q, k):
    return dot(s, turn(q, s.theta), turn(k, s.theta))


def alibi(s, q, k):
    """Slopes ``2^(-8 h / H)`` for a power of two of heads (Press et al. 2021, arXiv 2108.12409, section 3)."""
    assert math.log2(len(q)).is_integer()
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / len(q)) for h in range(len(q))], dtype=torch.float64)
    t = torch.arange(q.shape[-2])
    return dot(s, q, k) - slopes[:, None, None] * (t[:, None] - t[None, :])


def t5(s, q, k):
    """A number a bucket: half of the buckets hold a distance each, the others logarithmic ranges up to 128."""
    table, exact = s.w.get("posemb.table"), N_BUCKETS // 2
    scores = dot(s, q, k).clone()
    for i in range(q.shape[-2]):
        for j in range(i + 1):
            d = bucket = i - j
            if d >= exact:
                far = exact + int(math.log(d / exact) / math.log(MAX_DISTANCE / exact) * (N_BUCKETS - exact))
                bucket = min(far, N_BUCKETS - 1)
            scores[:, i, j] += table[bucket]
    return scores


def transformer_xl(s, q, k):
    """``(q_i + u) k_j + (q_i + v) W_R r_{i-j}`` (Dai et al. 2019, arXiv 1901.02860, section 3.3), over sqrt(head_dim)."""
    at = f"posemb.layers.{s.layer}"
    u, v = (split(s.w.get(f"{at}.{name}")[None], len(q)) for name in ("content", "position"))
    scores = (q + u) @ k.mT
    for i in range(q.shape[-2]):
        for j in range(i + 1):
            frequency = [10000 ** (-2 * c / s.d_model) for c in range(s.d_model // 2)]
            wave = torch.tensor([f((i - j) * w) for w in frequency for f in (math.sin, math.cos)], dtype=torch.float64)
            r = split((s.w.get(f"{at}.proj") @ wave)[None], len(q))
            scores[:, i, j] += ((q[:, i] + v[:, 0]) * r[:, 0]).sum(-1)
    return scores / math.sqrt(q.shape[-1])


def attention(s, x, at, scores=dot, band=None, prepared=None):
    q, k, v = (s.w.linear(x, f"{at}.{letter}_proj") for letter in "qkv")
    if prepared:
        q, k = prepared(s, q, f"{at}.q_norm"), prepared(s, k, f"{at}.k_norm")
    heads = [
        split(q, s.n_heads),
        *(split(y, s.n_kv_heads).repeat_interleave(s.n_heads // s.n_kv_heads, 0) for y in (k, v)),
    ]
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))[None, :]
    hidden = (distance < 0) | (distance >= (band or len(x)))
    weights = scores(s, heads[0], heads[1]).masked_fill(hidden, -math.inf).softmax(-1)
    return s.w.linear(torch.cat(tuple(weights @ heads[2]), -1), f"{at}.out_proj")


def pre_norm(norm, ffn, scores=dot, bands=None, prepared=None):
    """``x + f(norm(x))``, attention and then the FFN."""

    def layer(s, x, at):
        band = bands(s) if bands else None
        y = norm(s.w, x, f"{at}.attention.norm", s.eps)
        x = x + attention(s, y, f"{at}.attention.branch", scores, band, prepared)
        return x + ffn(s.w, norm(s.w, x, f"{at}.ffn.norm", s.eps), f"{at}.ffn.branch")

    return layer


def palm(s, x, at):
    """``x + MLP(LayerNorm(x)) + Attention(LayerNorm(x))`` (Chowdhery et al. 2022, arXiv 2204.02311, section 2)."""
    y = s.w.layer_norm(x, f"{at}.both.norm", s.eps)
    both = f"{at}.both.branch"
    return x + gated(swish)(s.w, y, f"{both}.ffn") + attention(s, y, f"{both}.attention", rotary)


def glm_130b(s, x, at):
    """``LayerNorm(alpha x + f(x))`` with ``alpha = (2N)^(1/2)`` (Zeng et al. 2022, arXiv 2210.02414, section 2.1)."""
    alpha = (2 * s.n_layers) ** 0.5
    x = alpha * x + attention(s, x, f"{at}.attention.branch", rotary)
    x = s.w.layer_norm(x, f"{at}.attention.norm", s.eps)
    return s.w.layer_norm(alpha * x + gated(gelu)(s.w, x, f"{at}.ffn.branch"), f"{at}.ffn.norm", s.eps)


def dclm_norm(s, x, at):
    return s.w.layer_norm(x, at, 1e-5)


LAYER, RMS = Weights.layer_norm, Weights.rms_norm
gpt = pre_norm(LAYER, plain(gelu))
# GPT-3: dense and locally banded layers in turn (Brown et al. 2020, arXiv 2005.14165, section 2.1)
banded = pre_norm(LAYER, plain(gelu_tanh), bands=lambda s: s.window if s.layer % 2 else None)
gopher = pre_norm(RMS, plain(gelu), transformer_xl)
# the layer, and the norm that ends the stack
SYSTEMS = {
    "gopher_280b": (gopher, RMS),  # Rae et al. 2021, arXiv 2112.11446, section 3.1
    "chinchilla_70b": (gopher, RMS),
    "palm_540b": (palm, LAYER),
    "palm_8b": (palm, LAYER),
    "lamda_137b": (pre_norm(LAYER, gated(gelu), t5), LAYER),  # Thoppilan et al. 2022, arXiv 2201.08239, section 3
    "glm_130b": (glm_130b, LAYER),
    "dclm_7b": (pre_norm(LAYER, gated(swish), rotary, prepared=dclm_norm), LAYER),  # Li et al. 2024, arXiv 2406.11794
    "pangu_alpha_200b": (gpt, LAYER),
    "jurassic1_178b": (gpt, LAYER),
    "mt_nlg_530b": (gpt, LAYER),
    "gpt3_175b": (banded, LAYER),
    "baichuan2_13b": (pre_norm(RMS, gated(swish), alibi), RMS),  # arXiv 2309.10305, section 2.3
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_is_the_formula_of_its_paper(name):
    layer, norm = SYSTEMS[name]
    cfg = presets.config(name, "tiny")
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"n_layers": 2, "vocab_size": 50})})
    if "window" in cfg.attention:
        cfg = cfg.model_copy(update={"attention": {**cfg.attention, "window": 7}})
    model = randomise(build_model(cfg), scale=0.1)
    m, w = cfg.model, Weights(model)
    sizes = {key: getattr(m, key) for key in ("n_heads", "n_kv_heads", "d_model", "n_layers")}
    given = {"eps": cfg.norm["eps"], "window": cfg.attention.get("window"), "theta": cfg.posemb.get("rope_theta")}
    ids = torch.randint(0, 50, (T,), generator=torch.Generator().manual_seed(5))

    x = w.get("embedding")[ids]
    if w.get("posemb.table") is not None and cfg.choices["posemb"] == "learned":
        x = x + w.get("posemb.table")[:T]
    for i in range(m.n_layers):
        x = layer(SimpleNamespace(w=w, layer=i, **sizes, **given), x, f"blocks.{i}")
    head = w.get("embedding") if m.tie_embeddings else w.get("head.proj")
    expected = norm(w, x, "final_norm", cfg.norm["eps"]) @ head.T
    with torch.no_grad():
        close(model(ids[None])[0], expected, 1e-5)


def test_a_swapped_formula_is_told_apart():
    """The comparison is sharp enough to see one constant: GLM-130B's alpha is not DeepNet's."""
    cfg = presets.config("glm_130b", "tiny")
    model = randomise(build_model(cfg), scale=0.1)
    other = cfg.model_copy(update={"norm_position": {**cfg.norm_position, "rule": "deepnet"}})
    twin = build_model(other)
    twin.load_state_dict(model.state_dict())
    ids = torch.arange(T)[None]
    with torch.no_grad():
        scale = model(ids).abs().max()
        assert (twin.eval()(ids) - model(ids)).abs().max() > 0.01 * scale


def test_gelu_is_what_torch_calls_exact():
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    close(gelu(x), F.gelu(x))
    close(gelu_tanh(x), F.gelu(x, approximate="tanh"))
