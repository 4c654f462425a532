"""Where a step's time goes: made-up events with known answers, real steps of every option, and the accounting."""

import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from corpus import QUICK, write_corpus
from tiny import AXES, SmallText, config, options
from variants import variant

from lmablate.analysis.step_time import COLORS, figure, published
from lmablate.budget import flops_per_token
from lmablate.budget.trace import all_flops_per_token, trace
from lmablate.core.errors import ConfigError
from lmablate.inspect import measured, profiling, step_time
from lmablate.inspect.accounted import COMPILED, PLAIN, WRITTEN_OUT, flops_by_kind
from lmablate.inspect.measured import measure, own_times, train_step
from lmablate.inspect.operators import (
    ATTENTION,
    CONTRACTIONS,
    HOST,
    KINDS,
    MOVEMENT,
    NORMALISATION,
    OPTIMIZER,
    OTHER,
    POINTWISE,
    kind_of,
)
from lmablate.inspect.parts_time import measure_parts
from lmablate.inspect.profiling import NORM, STEP, UPDATE, Event, alike, profiled, split

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
pytestmark = pytest.mark.filterwarnings("ignore")


def event(name, start, end, *, sequence=-1, number=0, thread=1, flops=0):
    return Event(name, start, end, thread, False, sequence, number, 0, flops)


def kernel(name, start, end, linked):
    return Event(name, start, end, 7, True, -1, 0, linked, 0)


CPU_STEP = [
    event(STEP, 0, 1000),
    event(NORM, 100, 200),
    event("aten::mul", 110, 190, sequence=5),
    event("aten::mul", 200, 300, sequence=6),
    event("aten::linear", 300, 500, sequence=7),
    event("aten::mm", 320, 480, sequence=7, flops=64),
    event("autograd::engine::evaluate_function: MulBackward0", 500, 600, sequence=6),
    event("MulBackward0", 505, 595, sequence=6),
    event("aten::mul", 510, 590, flops=9),
    event("autograd::engine::evaluate_function: MulBackward0", 600, 700, sequence=5),
    event("aten::mul", 620, 690),
    event(UPDATE, 700, 900),
    event("aten::mul", 720, 780),
    event("aten::made_up", 900, 930),
]


def test_events_of_a_cpu_divide_the_step_by_kind():
    """A norm's element-wise work is normalisation in both passes, by the node that its forward operator made."""
    (found,) = split(CPU_STEP, gpu=False)
    assert found.by_kind() == {
        NORMALISATION: 80 + 70, POINTWISE: 100 + 80, CONTRACTIONS: 160, OPTIMIZER: 200, OTHER: 30,
        HOST: (1000 - 830) + 20 + 40 + 20 + 30,
    }  # fmt: skip
    assert sum(found.nanoseconds) == found.length == 1000
    assert found.flops == 64  # of contractions alone


def test_a_gpus_step_is_its_kernels_and_the_waiting():
    host = [
        event(STEP, 0, 1000),
        event("aten::mm", 10, 20, number=1),
        event(NORM, 20, 40),
        event("aten::mul", 25, 35, number=2, sequence=3),
        event("autograd::engine::evaluate_function: MulBackward0", 40, 60, sequence=3, thread=2),
        event("aten::mul", 45, 55, number=3, thread=2),
        event("aten::item", 60, 900, number=4),
    ]
    kernels = [
        kernel("sm90_gemm", 100, 400, 1),
        kernel("elementwise_kernel", 400, 450, 2),
        kernel("elementwise_kernel", 450, 550, 3),
        kernel("Memcpy DtoH", 550, 560, 4),
        kernel("nobody_launched_it", 560, 600, 99),
    ]
    (found,) = split([*host, *kernels], gpu=True)
    assert found.by_kind() == {CONTRACTIONS: 300, NORMALISATION: 150, MOVEMENT: 10, OTHER: 40, HOST: 500}
    assert sum(found.nanoseconds) == found.length


def test_steps_are_told_apart_and_odd_ones_left_out():
    later = [e._replace(start=e.start + 5000, end=e.end + 5000) for e in CPU_STEP]
    odd = [e._replace(start=e.start + 9000, end=e.end + 9000) for e in CPU_STEP[:4]]
    found = split([*later, *CPU_STEP, *odd], gpu=False)
    assert [len(step.names) for step in found] == [14, 14, 4]
    assert alike(found) == found[:2]


def test_names_that_a_compiler_makes():
    assert kind_of("graph_0_cpp_fused_add_linear_mul_rms_norm_3") == NORMALISATION
    assert kind_of("graph_1_cpp_fused_linearbackward_mulbackward_rms_normbackward_6") == NORMALISATION
    assert kind_of("cpp_fused_linear_mul_silu_4") == POINTWISE
    assert kind_of("triton_poi_fused_add_linear_2") == POINTWISE
    assert kind_of("triton_poi_fused_catbackward_flattenbackward_transposebackward_2") == MOVEMENT
    assert kind_of("triton_per_fused__softmax_0") == NORMALISATION
    assert kind_of("cudaLaunchKernel") == HOST and kind_of("aten::mul_") == POINTWISE
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == ATTENTION
    assert kind_of("aten::something_new") == OTHER
    assert kind_of("aten::sgn") == kind_of("aten::atan_") == POINTWISE  # by torch's own tag


def together(*axes):
    """Configurations that have every option of `axes`, several at a time where they go together."""
    words = [options(axis) for axis in axes]
    for i in range(max(map(len, words))):
        chosen = {axis: own[i % len(own)] for axis, own in zip(axes, words, strict=True)}
        try:
            train_step(variant(**chosen), SmallText(), PLAIN)
            yield variant(**chosen)
        except ConfigError:
            yield from (variant(**{axis: option}) for axis, option in chosen.items())


def test_every_operator_of_every_option_is_known(monkeypatch):
    """Real steps, and one with its attention in products."""
    monkeypatch.setattr(profiling, "WARM", 0)
    cases = [
        *together("activation", "norm", "stability", "norm_position"),
        *together("posemb", "attention", "block_layout"),
        *together("ffn"),
    ]
    cases += [config("trainer.precision=bf16"), variant(model={"dropout": 0.1, "bias": True})]
    cases.append(variant(model={"vocab_size": 60_000, "n_layers": 1}))  # whose loss is computed in chunks
    for axis in AXES:
        assert axis == "aspect_ratio" or set(options(axis)) <= {cfg.choices[axis] for cfg in cases}
    steps = [train_step(cfg, SmallText(), PLAIN)[1] for cfg in cases]

    def run(number):
        steps[number](0)

    events = profiled(run, len(cases), profiling.time.perf_counter, gpu=False).events
    with measured._mode_context(WRITTEN_OUT):
        events += profiled(run, 1, profiling.time.perf_counter, gpu=False).events
    found = split(events, gpu=False)
    assert len(found) == len(cases) + 1
    unknown = {name for step in found for name, kind in zip(step.names, step.kinds, strict=True) if kind == OTHER}
    assert not unknown, sorted(unknown)
    for step in found:
        assert {CONTRACTIONS, POINTWISE, MOVEMENT, OPTIMIZER, HOST, NORMALISATION} <= set(step.kinds)


CASES = {
    "default": variant,
    "xl": lambda: config("runtime.microbatch_size=3", "posemb=transformer_xl"),
    "mla_cap": lambda: variant(attention="mla", stability="soft_cap"),
    "t5": lambda: variant(posemb="t5"),
    "gqa": lambda: variant(attention="gqa"),
    "window": lambda: variant(attention="sliding_window", norm="layer", norm_position="sandwich"),
}
QUICK_CASES = ("xl",)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK_CASES else pytest.mark.slow) for case in CASES]
)
def test_a_step_adds_up_and_its_products_are_the_accountings(case):
    """The profiler's FLOPs of products against the closed form, to the last one, with fused attention and without."""
    cfg = CASES[case]()
    for mode in (PLAIN, WRITTEN_OUT):
        found = measure(cfg, SmallText(), mode, 3)
        if found is None:
            assert mode == WRITTEN_OUT and not trace(cfg).fused
            continue
        step, table = found.step, found.split.set_index("kind")
        assert step["products_counted"] == step["products_expected"] > 0
        assert abs(step["adds_up"] - 1) < 0.05  # of the wall time of the same steps, by another clock
        assert list(table.index) == list(KINDS)
        assert table["time_share"].sum() == pytest.approx(1) and (table["time_share"] >= 0).all()
        assert table["milliseconds"].sum() == pytest.approx(step["milliseconds"])
        assert table["flops_share"].sum() == pytest.approx(1)
        assert table.loc[OTHER, "events"] == 0
        assert (table.loc[ATTENTION, "events"] > 0) == (mode == PLAIN and trace(cfg).fused)


def test_shares_of_flops_are_the_accountings():
    for cfg in (variant(norm="layer", attention="sliding_window"), variant(posemb="transformer_xl", stability="all")):
        work, length = trace(cfg), cfg.model.context_length
        for mode in (PLAIN, WRITTEN_OUT):
            flops = flops_by_kind(cfg, work, mode)
            assert sum(flops.values()) == pytest.approx(all_flops_per_token(cfg, work) * length, abs=length)
            if ATTENTION not in flops:
                assert flops[CONTRACTIONS] == flops_per_token(cfg) * length
        rest = sum(own.flops for own in work.operators.values())
        assert (
            rest == work.pointwise.flops and sum(own.bytes for own in work.operators.values()) == work.pointwise.bytes
        )


def test_fused_attention_is_products_over_the_keys_that_are_read_and_their_softmax():
    """By hand: 2 layers, 4 heads of 8, 24 tokens that read 12.5 keys on average; 2 products forward and 4 back."""
    cfg = variant()
    heads, width = cfg.model.n_heads, cfg.model.head_dim
    flops = flops_by_kind(cfg, trace(cfg), PLAIN)
    pairs = 2 * 24 * 12.5
    assert flops[ATTENTION] == pairs * heads * (6 * 2 * width + 11)


@pytest.mark.slow
def test_a_model_without_norms_spends_less_on_them():
    """Its softmax of the loss stays; events are counted, not seconds."""
    found = {
        norm: measure(variant(norm=norm), SmallText(), PLAIN, 3).split.set_index("kind") for norm in ("none", "layer")
    }
    assert 0 < found["none"].loc[NORMALISATION, "events"] < found["layer"].loc[NORMALISATION, "events"]
    assert found["none"].loc[NORMALISATION, "flops_share"] < found["layer"].loc[NORMALISATION, "flops_share"]


def test_interruptions_are_taken_out():
    """Short events as they are undisturbed; long ones, which are interrupted in every step, by what is left of the step."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.uniform(0.001, 0.3, 400), [5.0, 10.0]])
    each = truth * rng.uniform(1, 1.05, (30, 402))
    quiet = own_times(each, each.min(axis=0), 1.025 * truth.sum())
    np.testing.assert_allclose(quiet, 1.025 * truth, rtol=0.03)
    each[:, :400] += rng.choice([0, 4.0], (30, 400), p=[0.9, 0.1])
    each[:, 400:] *= 2
    busy = own_times(each, each.min(axis=0), 1.025 * truth.sum())
    np.testing.assert_allclose(busy, 1.025 * truth, rtol=0.05)


def test_what_the_profiler_adds_is_taken_off_each_event_alike():
    names, kinds = ["a"] * 10 + ["b"], [HOST] * 10 + [CONTRACTIONS]
    steps = [profiling.Split(names, kinds, [2000] * 10 + [80_000], 0, 0) for _ in range(4)]  # 0.1 ms in all
    table = measured._table(steps, {CONTRACTIONS: 1.0}, plain=0.089, profiled=0.1).set_index("kind")
    assert table.loc[HOST, "milliseconds"] == pytest.approx(0.010)
    assert table.loc[CONTRACTIONS, "milliseconds"] == pytest.approx(0.079)
    assert table.loc[HOST, "profiled"] == pytest.approx(0.020)
    assert table.loc[HOST, "low"] == pytest.approx(table.loc[HOST, "time_share"])  # all steps alike


def test_parts_are_compared_with_the_first_configuration():
    configs = {
        "rms": variant(),
        "none": variant(norm="none"),
        "parallel, t5": variant(block_layout="parallel", posemb="t5"),
    }
    table = measure_parts(configs, [SmallText()] * 3, 5, compiled=False)
    assert len(table) == 9 and (table["rounds"] == 5).all()
    rows = table.set_index(["config", "part"])
    for part in ("norm", "block", "step"):
        assert rows.loc[("rms", part), "ratio"] == rows.loc[("rms", part), "ratio_low"] == 1
        for config_ in configs:
            row = rows.loc[(config_, part)]
            assert 0 <= row["low"] <= row["milliseconds"] <= row["high"]
            assert row["ratio"] == pytest.approx(row["milliseconds"] / rows.loc[("rms", part), "milliseconds"])
    assert rows.loc[("none", "norm"), "ratio"] < 0.5  # a module that hands its input on


def test_a_part_is_given_what_it_is_given_in_the_model():
    """The block's output and the gradient of its input, against the model's own pass."""
    from lmablate.inspect.parts_time import _recorded_calls

    cfg = variant()
    trainer, _ = train_step(cfg, SmallText(), PLAIN)
    block = trainer.model.blocks[0]
    call = _recorded_calls(trainer, block, block.attention.norm)["block"]
    seen = {}
    handle = block.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
    trainer.model(trainer.rows(0)[:, :-1])
    handle.remove()
    assert torch.equal(call.args[0], seen["x"]) and torch.equal(call.module(*call.args), seen["y"])
    assert call.args[0].requires_grad and call.args[0].is_leaf


def words(folder):
    write_corpus(folder / "text")
    return [
        *QUICK,
        f"data.paths={folder}/text/*.txt",
        "model.context_length=16",
        "runtime.device=cpu",
        "trainer.precision=fp32",
    ]


def test_the_command_writes_tables_and_a_figure(tmp_path, capsys):
    out = tmp_path / "out"
    assert step_time.main([*words(tmp_path), "norm=layer", "--steps", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "norm=layer" in said and "as the accounting gives" in said and "NOT the" not in said
    table = pd.read_csv(out / "split.csv")
    assert set(table["mode"]) == {PLAIN, WRITTEN_OUT} and set(table["kind"]) == set(KINDS)
    assert len(pd.read_csv(out / "steps.csv")) == 2 and not (out / "parts.csv").exists()
    assert (out / "step_time.png").stat().st_size > 10_000 and (out / "step_time.svg").is_file()


@pytest.mark.slow
def test_a_grid_is_compared_part_by_part(tmp_path, capsys):
    own = ["--steps", "3", "--out", str(tmp_path / "out"), "--parts"]
    grid = [f"results_dir={tmp_path}/results", "norm=rms,none", "block_layout=serial,parallel"]
    assert step_time.main([*grid, *words(tmp_path), *own]) == 0
    assert "norm=none block_layout=parallel · eager" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "out" / "split.csv")) == 4 * 2 * len(KINDS)
    assert len(pd.read_csv(tmp_path / "out" / "parts.csv")) == 4 * 3


def test_bad_words_are_refused(tmp_path, capsys):
    assert step_time.main([*words(tmp_path), "--steps", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--steps 2" in capsys.readouterr().err
    assert step_time.main([*words(tmp_path), "norm=nothing"]) == 2
    with pytest.raises(SystemExit, match="0"):
        step_time.main(["--help"])
    assert {"--steps", "--parts", "--compiled", "--out"} <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_the_figure_draws_the_tables_shares_beside_the_published_ones():
    table = pd.DataFrame(
        {
            "config": "defaults", "mode": PLAIN, "kind": KINDS,
            "flops_share": [0.9, 0.05, 0.02, 0.02, 0.01, np.nan, np.nan, np.nan],
            "time_share": [0.5, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1, 0.0],
        }
    )  # fmt: skip
    axes = figure(table).axes[0]
    bars = [[(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in box] for box in axes.containers]
    drawn = [box[0] for box in bars[: 4 * len(COLORS)]]
    assert [width for _, width in drawn[3 * len(COLORS) :]] == pytest.approx(
        [table.set_index("kind")["time_share"][kind] for kind in COLORS]
    )
    assert published()["time"][NORMALISATION] == 0.255 and published()["FLOPs"][NORMALISATION] == pytest.approx(0.0017)
    assert sum(published()["FLOPs"].values()) == pytest.approx(1) == sum(published()["time"].values())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["published: FLOPs", "published: time", f"{PLAIN}: FLOPs", f"{PLAIN}: time"]
    assert set(COLORS) == set(KINDS)


@pytest.mark.slow
def test_a_compiled_step_is_known_too():
    found = measure(variant(), SmallText(), COMPILED, 5)
    assert found.step["products_counted"] == found.step["products_expected"]
    assert abs(found.step["adds_up"] - 1) < 0.05
    table = found.split.set_index("kind")
    assert table.loc[OTHER, "events"] == 0 and table.loc[NORMALISATION, "time_share"] > 0
    eager = measure(variant(), SmallText(), PLAIN, 5).split.set_index("kind")
    assert table.loc[POINTWISE, "events"] < eager.loc[POINTWISE, "events"]
    assert table["flops_share"].equals(eager["flops_share"])


COMPILED_CASES = (
    {"norm": "layer", "norm_position": "sandwich", "activation": "geglu_tanh", "posemb": "alibi", "attention": "gqa"},
    {"activation": "relu2", "posemb": "t5", "attention": "sliding_window", "block_layout": "parallel2"},
    {"norm_position": "deepnorm", "posemb": "learned", "attention": "mla", "stability": "soft_cap"},
)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", COMPILED_CASES, ids=lambda chosen: "-".join(chosen.values()))
def test_operators_of_other_options_compiled_are_known(chosen):
    found = measure(variant(**chosen), SmallText(), COMPILED, 3)
    assert found.split.set_index("kind").loc[OTHER, "events"] == 0
    assert found.step["products_counted"] == found.step["products_expected"]
