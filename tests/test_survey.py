"""The survey of published systems: its table against published counts, its counts against the lecture's, its verdicts."""

import json
import re

import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lmablate import presets
from lmablate.analysis import survey as figures
from lmablate.core.errors import ConfigError
from lmablate.core.paths import ROOT
from lmablate.survey import by_year, judged, systems
from lmablate.survey import judge as judge_module
from lmablate.survey import table as table_module
from lmablate.survey.__main__ import main, write
from lmablate.survey.judge import SurveyClaim, load_claims, matches
from lmablate.survey.table import COLUMNS, extras, release_of

TABLE = systems()
BY_NAME = {row["system"]: row for row in TABLE}
JUDGED = {claim["id"]: claim for claim in judged(TABLE)}


def test_the_table_has_every_preset_once():
    assert len(BY_NAME) == len(TABLE)
    assert {row["built"] for row in TABLE} == set(presets.names())
    assert all(list(row) == list(COLUMNS) for row in TABLE)


@pytest.mark.parametrize("claim", [claim for claim in load_claims().values() if claim.table], ids=lambda c: c.id)
def test_the_lectures_own_table_is_counted_as_published(claim):
    """22 of 25 models are pre-norm and 1 is not, where two do not say, and so on."""
    assert JUDGED[claim.id]["lecture_table"] == claim.table


@pytest.mark.parametrize(
    ("column", "counts"),
    [
        ("norm_position", {"pre": 22, "deepnorm": 1, None: 2}),
        ("norm", {"rms": 12, "layer": 11, None: 2}),  # GLM's DeepNorm is a LayerNorm
        ("position", {"rope": 12, "learned": 5, "relative": 4, "alibi": 3, None: 1}),
        ("activation", {"swiglu": 9, "geglu": 3, "gelu": 8, "relu": 2, None: 3}),
        ("head_dim", {128: 19, 256: 2, 160: 1, 144: 1, 112: 1, 64: 1}),
    ],
)
def test_options_of_the_lectures_table(column, counts):
    values = [row[column] for row in TABLE if row["in_lecture_table"]]
    assert {value: values.count(value) for value in set(values)} == counts


@pytest.mark.parametrize(
    ("system", "column", "value"),
    [
        ("GPT-3 175B", "heads_width", 1),
        ("T5-11B", "heads_width", 16),
        ("LaMDA 137B", "heads_width", 2),
        ("LLaMA-2 70B", "heads_width", 1),
        ("PaLM 540B", "heads_width", 48 * 256 / 18432),
        ("BLOOM-176B", "aspect_ratio", 204.8),
        ("PaLM 540B", "aspect_ratio", 156.2),
        ("GPT-3 175B", "aspect_ratio", 128),
        ("OPT-175B", "aspect_ratio", 128),
        ("LLaMA-2 70B", "aspect_ratio", 102.4),
        ("Transformer base", "vocab_size", 37000),
        ("GPT-2 XL", "vocab_size", 50257),
        ("T5-11B", "vocab_size", 32128),
        ("PaLM 540B", "vocab_size", 256000),
        ("Qwen1.5-72B", "vocab_size", 152064),
        ("LLaMA-1 7B", "ff_ratio", 2.6875),
        ("Yi-34B", "ff_ratio", 2.857),
        ("T5-11B", "ff_ratio", 64),
    ],
)
def test_ratios_of_the_lectures_slides(system, column, value):
    """Slides 42 to 44 and 47."""
    assert BY_NAME[system][column] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("system", "kind", "experts"),
    [
        ("GPT-3 175B", "decoder", (None, None, None)),
        ("ELECTRA-large", "encoder", (None, None, None)),
        ("T5 v1.1 XXL", "encoder-decoder", (None, None, None)),
        ("Mixtral 8x7B", "mixture", (8, 2, 0)),  # as the option has them
        ("DeepSeek-V3", "mixture", (256, 8, 1)),
        ("MiniMax-M2", "mixture", (256, 8, 0)),
    ],
)
def test_the_kind_of_a_system_follows_from_its_preset(system, kind, experts):
    row = BY_NAME[system]
    assert (row["kind"], tuple(row[key] for key in table_module.EXPERTS)) == (kind, experts)


@pytest.mark.parametrize("name", presets.names())
def test_facts_of_presets_are_those_of_the_models_they_build(name):
    row = next(row for row in TABLE if row["built"] == name)
    cfg = presets.config(name)
    model = cfg.model
    for key in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "context_length"):
        assert row[key] == getattr(model, key), key
    assert row["head_dim"] == cfg.attention.get("v_head_dim") or model.head_dim
    known = {key: row[key] for key in ("gated", "tied", "linear_bias") if row[key] is not None}
    parts = (model.qkv_bias, model.out_bias, model.mlp_bias)
    biased = {part if part is not None else model.bias for part in parts}
    words = {"gated": cfg.activation.gated, "tied": model.tie_embeddings}
    words["linear_bias"] = "some" if len(biased) > 1 else "all" if biased == {True} else "none"
    assert known == {key: words[key] for key in known}


def test_years_are_those_of_the_papers_or_said_to_be_others():
    for row in TABLE:
        found = re.search(r"arXiv (\d\d)(\d\d)\.\d+", row["source"])
        if found and row["system"] not in extras().released:
            assert 2000 + int(found[1]) == row["year"], row["system"]
    assert set(extras().released) <= set(BY_NAME)


def test_every_name_in_the_data_is_of_a_system_or_release():
    releases = {row["release"] for row in TABLE}
    assert {name for one in extras().training for name in one.of} <= releases
    assert {*extras().lecture_table, *extras().not_published} <= set(BY_NAME)
    named = [claim.where["release"] for claim in load_claims().values() if claim.where and "release" in claim.where]
    assert {name for value in named for name in (value if isinstance(value, list) else [value])} <= releases
    assert {name for claim in load_claims().values() for name in claim.but or ()} <= releases


@pytest.mark.parametrize(
    ("system", "release"),
    [("LLaMA-3.1 405B", "LLaMA-3.1"), ("Mixtral 8x7B", "Mixtral"), ("Mistral 7B v0.1", "Mistral"), ("T5-11B", "T5"),
     ("Qwen1.5-MoE-A2.7B", "Qwen1.5-MoE"), ("GPT-2 small", "GPT-2"), ("Jurassic-1 Jumbo", "Jurassic-1"), ("GPT-J 6B", "GPT-J"),
     ("Grok-1", "Grok-1"), ("DeepSeek-V3", "DeepSeek-V3"),
     ("GLM-4.5 Air", "GLM-4.5"), ("Qwen3 235B-A22B", "Qwen3"), ("T5 v1.1 XXL", "T5 v1.1")],
)  # fmt: skip
def test_a_release_is_a_name_without_its_size(system, release):
    assert release_of(system) == release


def test_every_release_has_one_largest_system():
    for release in {row["release"] for row in TABLE}:
        sizes = [row for row in TABLE if row["release"] == release]
        (standing,) = [row for row in sizes if row["stands_for_release"]]
        assert standing["params"] == max(row["params"] for row in sizes)


@pytest.mark.parametrize("claim", JUDGED.values(), ids=JUDGED)
def test_intervals_are_exact_and_name_every_exception(claim):
    for one in (claim, claim["later"]):
        k, n = one["count"], one["n"]
        if one["interval_95"] is not None:
            assert one["interval_95"] == pytest.approx(list(proportion_confint(k, n, 0.05, method="beta")), abs=1e-12)
        assert len(one["exceptions"]) == n - k
        assert one["systems"][1] >= n
    k, n = claim["count"], claim["n"]
    if claim["p_grew"] is not None:
        before, of = claim["before"]
        assert claim["p_grew"] == pytest.approx(stats.hypergeom.sf(k - 1, n + of, k + before, n), rel=1e-9)


def test_verdicts_that_the_reference_gives():
    for name, verdict, exceptions in (
        ("pre_norm", "supported", None),
        ("head_dim_128", "supported", None),
        ("serial_but_gptj", "contradicted", {"PaLM", "Pythia", "GPT-NeoX", "Falcon"}),
        ("depth_100", "contradicted", {"PaLM", "MT-NLG", "LLaMA-3.1"}),
        ("llama2_gqa", "contradicted", {"LLaMA-2 7B"}),
        ("qk_norm_users", "contradicted", {"Gemma-2"}),
        ("geglu_users", "contradicted", {"PaLM"}),
        ("clean_residual", "contradicted", {"GLM"}),
    ):
        assert JUDGED[name]["verdict"] == verdict, name
        assert exceptions is None or set(JUDGED[name]["exceptions"]) == exceptions, name


def _made_up(*groups):
    """`groups`: (how many, year, norm)."""
    rows = [(year, norm) for count, year, norm in groups for _ in range(count)]
    named = enumerate(rows)
    blank = dict.fromkeys(COLUMNS)
    return [
        {**blank, "system": f"s{i}", "release": f"s{i}", "year": year, "norm": norm, "stands_for_release": True, "in_lecture_table": False}
        for i, (year, norm) in named
    ]  # fmt: skip


def _verdict(table, **keys):
    claim = {
        "id": "x",
        "group": "g",
        "statement": "s",
        "said_in": "here",
        "holds": {"norm": "rms"},
        "rule": "most",
    } | keys
    (found,) = judged(table, {"x": SurveyClaim.model_validate(claim)})
    return found


@pytest.mark.parametrize(
    ("groups", "keys", "verdict"),
    [
        (((9, 2020, "rms"), (1, 2020, "layer")), {}, "supported"),
        (((1, 2020, "rms"), (9, 2020, "layer")), {}, "contradicted"),
        (((6, 2020, "rms"), (4, 2020, "layer")), {}, "not decided"),
        (((40, 2020, "rms"),), {"rule": "nearly_all"}, "supported"),
        (((9, 2020, "rms"),), {"rule": "nearly_all"}, "not decided"),
        (((9, 2020, "rms"),), {"rule": "all"}, "supported"),
        (((99, 2020, "rms"), (1, 2020, "layer")), {"rule": "all"}, "contradicted"),
        (((9, 2020, "rms"), (1, 2020, "layer")), {"rule": "all", "but": ["s9"]}, "supported"),
        (((9, 2020, "rms"), (9, 2010, "layer")), {"since": 2020}, "supported"),
        (((9, 2020, "rms"), (9, 2010, "rms")), {"since": 2020}, "not decided"),  # no rise
        (((9, 2020, "rms"), (9, 2010, "layer")), {"where": {"year": "2000..2015"}}, "contradicted"),
        (((9, 2020, "rms"), (30, 2020, None)), {}, "supported"),  # what was not published counts for nothing
        (((9, 2020, None),), {}, "not decided"),
    ],
)
def test_rules(groups, keys, verdict):
    assert _verdict(_made_up(*groups), **keys)["verdict"] == verdict


@pytest.mark.parametrize(
    ("groups", "keys", "verdict", "became"),
    [
        (((9, 2020, "rms"), (1, 2025, "rms")), {}, "supported", "not decided"),
        (((9, 2020, "rms"), (1, 2020, "layer"), (9, 2025, "rms")), {}, "supported", "still so"),
        (((1, 2020, "rms"), (1, 2020, "layer"), (9, 2026, "rms")), {}, "not decided", "so now"),
        (((9, 2020, "rms"), (9, 2025, "layer")), {}, "supported", "not so now"),
        (((9, 2020, "layer"), (9, 2025, "layer")), {}, "contradicted", "still not so"),
        (((9, 2020, "rms"),), {}, "supported", "nothing to count"),
        (
            ((9, 2010, "rms"), (9, 2020, "rms"), (9, 2025, "rms")),
            {"since": 2020},
            "not decided",
            "so now",
        ),  # a share, and no rise
    ],
)
def test_what_came_after_the_lecture_is_judged_apart(groups, keys, verdict, became):
    found = _verdict(_made_up(*groups), **keys)
    assert (found["verdict"], found["became"]) == (verdict, became)
    assert found["n"] + found["later"]["n"] <= sum(count for count, *_ in groups)


def test_what_is_not_published_is_counted_apart():
    found = _verdict(_made_up((3, 2020, "rms"), (2, 2020, None)))
    assert (found["count"], found["n"], found["unknown"]) == (3, 3, 2)
    assert matches({"norm": None, "year": 2020}, {"norm": "rms", "year": "2021..2022"}) is False
    assert matches({"norm": None, "year": 2021}, {"norm": "rms", "year": "2021..2022"}) is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"holds": {"norms": "rms"}}, "norms is no column"),
        ({"rule": "all", "since": 2020}, "since is for a share that grew"),
        ({"where": {"release": "T5"}}, "rule: all"),
    ],
)
def test_a_wrong_claim_is_refused(entry, words, tmp_path, monkeypatch):
    good = {"id": "x", "group": "g", "statement": "s", "said_in": "here", "holds": {"norm": "rms"}, "rule": "most"}
    (tmp_path / "claims.yaml").write_text(json.dumps({"claims": [good | entry]}))
    monkeypatch.setattr(judge_module, "FILE", tmp_path / "claims.yaml")
    with pytest.raises(ConfigError, match=words):
        load_claims.__wrapped__()


def test_shares_by_year_add_up():
    for row in by_year(TABLE, "norm"):
        assert row["n"] == row["unknown"] + row["layer"] + row["rms"]
    assert sum(row["n"] for row in by_year(TABLE, "norm")) == len({row["release"] for row in TABLE})
    assert sum(row["n"] for row in by_year(TABLE, "norm", releases=False)) == len(TABLE)


def test_the_figures_show_the_table():
    drawn = figures.figure(TABLE)
    for axes, (column, title, options) in zip(drawn.axes, figures.CHOICES, strict=True):
        assert axes.get_title(loc="left") == title
        heights = {}
        for bars in axes.containers:
            for bar in bars:
                year = round(bar.get_x() + bar.get_width() / 2)
                heights[year] = heights.get(year, 0) + bar.get_height()
        assert heights == pytest.approx({row["year"]: 1.0 for row in by_year(TABLE, column)})
        seen = {"yes" if row[column] is True else "no" if row[column] is False else row[column] for row in TABLE} - {
            None
        }
        assert seen <= set(options), "an option without a name of its own"
    for axes, (column, *_) in zip(figures.ratios(TABLE).axes, figures.RATIOS, strict=True):
        marks = [line for line in axes.lines if line.get_marker() not in ("None", None)]
        assert sorted(line.get_ydata()[0] for line in marks) == sorted(
            row[column] for row in TABLE if row[column] is not None
        )
    shown = figures.verdicts(list(JUDGED.values())).axes[0]
    assert [label.get_text() for label in shown.get_yticklabels()] == [claim["statement"] for claim in JUDGED.values()]


def test_the_command_writes_tables_figures_and_verdicts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda figure, stem: [stem])  # drawing is the test above
    assert main(["--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"{len(TABLE)} systems" in said
    assert "contradicted  Nobody goes beyond 100 layers (3 of 50" in said
    assert "since 2025 so now: all 14 of them" in said
    assert json.loads((tmp_path / "out" / "claims.json").read_text()) == list(JUDGED.values())
    for name in ("systems", "ratios", "by_year", "claims"):
        title, _, *lines = (tmp_path / "out" / "tables" / f"{name}.md").read_text().splitlines()
        assert title.startswith("# ")  # a page of the site
        assert len({line.count("|") for line in lines}) == 1, name
        assert (tmp_path / "out" / "tables" / f"{name}.csv").is_file()


@pytest.mark.parametrize("name", ["systems", "claims"])
def test_the_stored_tables_are_those_of_today(name, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    write(TABLE, list(JUDGED.values()), tmp_path)
    stored = ROOT / "docs" / "results" / "survey" / "tables" / f"{name}.csv"
    made = (tmp_path / "tables" / f"{name}.csv").read_text()
    assert stored.read_text() == made, "renew it with: lmablate survey --out docs/results/survey"


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out" in capsys.readouterr().err
