"""Tasks with known answers: each is solved again in plain Python, and their statistics are held against the published ones."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter
from scipy import stats
from tiny import request

from lmablate.config.composition import from_request
from lmablate.core.errors import ConfigError
from lmablate.core.paths import CONF_DIR
from lmablate.data import prepare
from lmablate.data.tasks.philox import Draws
from lmablate.data.tasks.recall import gap_weights
from lmablate.data.tokens import IGNORED
from lmablate.schema.data import DataSettings
from lmablate.schema.tasks import SOURCES

LENGTHS = {"modular": 4, "selective_copying": 64, "compression": 32, "memorisation": 32, "mqar": 64}
TASKS = [
    path.stem
    for path in sorted(CONF_DIR.glob("data/*.yaml"))
    if yaml.safe_load(path.read_text()).get("source", path.stem) in (*SOURCES, "noisy_recall")
]


def task(name, **changes):
    """The task of a file in conf/data, at a small size."""
    values = yaml.safe_load((CONF_DIR / "data" / f"{name}.yaml").read_text())
    for parent in values.pop("defaults", []):
        if parent != "_self_":
            values = yaml.safe_load((CONF_DIR / "data" / f"{parent}.yaml").read_text()) | values
    length = changes.pop("length", LENGTHS.get(name, 24))
    settings = TypeAdapter(DataSettings).validate_python(values | changes)
    return prepare(settings, None, context_length=length)


def examples(data, n=2000):
    """Inputs and targets of many training examples, int64 ``[n, T]``."""
    rows = data.batch(0, data_seed=0, batch_size=n, context_length=data.length)
    return rows[:, : data.length], rows[:, data.length :]


def scored(inputs, targets):
    """(place, input, target) of what is scored in one example."""
    return [(i, int(x), int(y)) for i, (x, y) in enumerate(zip(inputs, targets, strict=True)) if y != IGNORED]


# --- what all have in common ------------------------------------------------------------------------------------------


def test_all_tasks_are_here():
    assert len(TASKS) == 11


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_a_pure_function_of_seed_and_step_and_validation_is_fixed(name):
    data, again = task(name), task(name)
    length = data.length
    batch = data.batch(7, data_seed=3, batch_size=5, context_length=length)
    assert batch.shape == (5, 2 * length)
    assert batch.dtype == np.int64
    for step in (0, 9, 6):
        again.batch(step, data_seed=step, batch_size=2, context_length=length)
    np.testing.assert_array_equal(again.batch(7, data_seed=3, batch_size=5, context_length=length), batch)
    for step, seed in ((8, 3), (7, 4)):
        assert (data.batch(step, data_seed=seed, batch_size=5, context_length=length) != batch).any()
    inputs, targets = data.val_windows(length)
    np.testing.assert_array_equal(inputs, again.val_windows(length)[0])
    assert ((targets != IGNORED).sum(axis=1) > 0).all()
    for x, y in ((inputs, targets), (batch[:, :length], batch[:, length:])):
        assert x.min() >= 0
        assert max(x.max(), y.max()) < data.vocab_size
        assert y[y != IGNORED].min() >= 0
    assert data.row_fields()["val_tokens"] == (targets != IGNORED).sum()
    assert task(name, task_seed=5).fingerprint != data.fingerprint


@pytest.mark.parametrize("name", ["mqar", "sort", "memorisation"])
def test_a_limited_training_set_is_read_in_epochs(name):
    data = task(name, n_examples=10)
    length = data.length
    rows = [data.batch(step, data_seed=1, batch_size=4, context_length=length) for step in range(5)]
    texts = [row.tobytes() for row in np.concatenate(rows)]
    assert set(texts[:10]) == set(texts[10:])
    assert len(set(texts)) == 10
    assert texts[:10] != texts[10:]
    other = [data.batch(step, data_seed=2, batch_size=4, context_length=length) for step in range(5)]
    assert {row.tobytes() for row in np.concatenate(other)} == set(texts)


def test_draws_are_uniform_distinct_and_weighted():
    draws = Draws(0, 1)
    counts = np.bincount(draws.below(7, 7000), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3
    drawn = draws.distinct(7000, 3, 7)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    for place in range(3):
        assert stats.chisquare(np.bincount(drawn[:, place], minlength=7)).pvalue > 1e-3
    # the first of a weighted draw goes by the weights, and what follows as numpy draws it
    weights = gap_weights(10, 0.01)
    got, rng = draws.weighted(4000, 3, weights), np.random.default_rng(0)
    assert stats.chisquare(np.bincount(got[:, 0], minlength=10), 4000 * weights).pvalue > 1e-3
    theirs = np.array([rng.choice(10, 3, replace=False, p=weights) for _ in range(4000)])
    for place in (1, 2):
        table = [np.bincount(x[:, place], minlength=10) for x in (got, theirs)]
        assert stats.chi2_contingency(table).pvalue > 1e-3


# --- recall -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_filler", [True, False])
def test_mqar_asks_for_the_value_of_each_key_once(random_filler):
    data = task("mqar", vocab_size=40, n_pairs=4, random_filler=random_filler)
    inputs, targets = examples(data, 300)
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        value_of = dict(zip(x[0:8:2], x[1:8:2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == 4
        assert all(1 <= key < 20 <= value < 40 for key, value in value_of.items())
        asked = scored(x, y)
        assert {key: value for _, key, value in asked} == value_of
        assert len(asked) == 4
        assert all(place >= 8 and place % 2 == 0 for place, _, _ in asked)
        if not random_filler:
            assert Counter(x[8:])[0] == len(x) - 8 - 4
    if random_filler:
        filler = inputs[:, 8:][targets[:, 8:] == IGNORED]
        assert stats.chisquare(np.bincount(filler, minlength=40)).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_mqar_gaps_follow_the_published_power_law(power):
    """p(g) ~ power (g + 1)^(power - 1), drawn without replacement for one key after the other, as numpy does it."""
    data = task("mqar", power=power, n_pairs=4, length=48)
    inputs, targets = examples(data, 3000)
    space, rng = (48 - 8) // 2, np.random.default_rng(1)
    p = power * np.arange(1, space + 1) ** (power - 1)
    theirs = np.array([rng.choice(space, 4, replace=False, p=p / p.sum()) for _ in range(3000)])
    place = {key: i for i, key in enumerate(range(0, 8, 2))}
    ours = np.full((3000, 4), -1)
    for row, (x, y) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
        pair_of = {x[at]: pair for at, pair in place.items()}
        for at, key, _ in scored(x, y):
            ours[row, pair_of[key]] = (at - 8) // 2
    for pair in range(4):
        counts = np.array([np.bincount(gaps[:, pair], minlength=space) for gaps in (ours, theirs)])
        assert stats.chi2_contingency(counts[:, counts.sum(axis=0) > 10]).pvalue > 1e-3


@pytest.mark.parametrize(("name", "share"), [("recall", 0.0), ("noisy_recall", 0.2), ("noisy_recall", 0.8)])
def test_recall_scores_the_values_of_keys_seen_before(name, share):
    changes = {"noise_fraction": share} if share else {}
    data = task(name, length=32, **changes)
    inputs, targets = examples(data, 1000)
    noisy = 0
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        value_of, expected = {}, {}
        for at in range(0, 32, 2):
            key, value = x[at], x[at + 1]
            if key >= 16:
                assert value >= 16, "noise comes in pairs"
                noisy += 1
                continue
            assert key < 8 <= value < 16
            if key in value_of:
                expected[at] = value_of[key]
            assert value_of.setdefault(key, value) == value, "a key has one value"
        assert 30 in expected, "the last key was seen before"
        assert {at: answer for at, _, answer in scored(x, y)} == expected
    # of 16 pairs the last is none, and one of the 16, drawn beforehand, is none
    mean = 15 * share * (1 - 1 / 16)
    assert noisy / 1000 == pytest.approx(mean, abs=4 * np.sqrt(15 * share * (1 - share) / 1000) + 1e-9)


def test_recall_may_train_on_every_next_token():
    data, only = task("recall", train_on="all"), task("recall")
    inputs, targets = examples(data, 50)
    np.testing.assert_array_equal(targets[:, :-1], inputs[:, 1:])
    assert (targets[:, -1] == IGNORED).all()
    np.testing.assert_array_equal(inputs, examples(only, 50)[0])
    np.testing.assert_array_equal(data.val_windows(24)[1], only.val_windows(24)[1])


def test_induction_asks_for_what_came_after_the_trigger():
    inputs, targets = examples(task("induction"))
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert x.count(15) == 2
        assert scored(x, y) == [(23, 15, x[x.index(15) + 1])]
    first = (inputs == 15).argmax(axis=1)
    assert stats.chisquare(np.bincount(first, minlength=22)).pvalue > 1e-3


# --- sequences --------------------------------------------------------------------------------------------------------


def test_selective_copying_scatters_blanks_before_the_tokens_as_published():
    data = task("selective_copying", n_copied=5, length=30)
    inputs, targets = examples(data, 3000)
    for x, y in zip(inputs[:300].tolist(), targets.tolist(), strict=False):
        head, signal, tail = x[:24], x[24], x[25:]
        assert signal == 15
        assert tail == [14] * 5
        assert [answer for _, _, answer in scored(x, y)] == [token for token in head if token < 14]
        assert [at for at, _, _ in scored(x, y)] == list(range(25, 30))
        assert head[-1] < 14
    rng = np.random.default_rng(2)
    theirs = np.array([np.insert(np.zeros(5), rng.integers(0, 5, 19), 1) for _ in range(3000)]).sum(axis=0)
    ours = (inputs[:, :24] == 14).sum(axis=0)
    table = np.array([ours, theirs])[:, :-1]  # a token is certain before the signal
    assert stats.chi2_contingency(np.stack((table[0], table[1]))).pvalue > 1e-3
    assert ours.sum() == theirs.sum() == 3000 * 19


def test_compression_wants_every_token_back():
    inputs, targets = examples(task("compression"))
    np.testing.assert_array_equal(inputs, targets)
    assert (inputs[:, -1] == 15).all()
    assert stats.chisquare(np.bincount(inputs[:, :-1].ravel(), minlength=15)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "solve"),
    [("copy", list), ("reverse", lambda items: items[::-1]), ("sort", sorted)],
    ids=["copy", "reverse", "sort"],
)
def test_sequences_are_said_again(name, solve):
    data = task(name, vocab_size=12)
    inputs, targets = examples(data)
    for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
        signal = x.index(11)
        items, answer = x[:signal], solve(x[:signal])
        assert y[signal : 2 * signal] == answer
        assert [at for at, _, _ in scored(x, y)] == list(range(signal, 2 * signal))
        assert x[signal + 1 : 2 * signal] == answer[:-1]
        assert set(x[2 * signal :]) <= {10}
        assert max(items) < 10
    assert stats.chisquare(np.bincount((inputs == 11).argmax(axis=1))[1:]).pvalue > 1e-3
    longer = data.val_lengths()
    assert list(longer) == [6, 12, 18, 24]
    for items, (x, y) in longer.items():
        assert x.shape == (256, 2 * items)
        assert y[0, items:].tolist() == solve(x[0, :items].tolist())


# --- facts ------------------------------------------------------------------------------------------------------------


def test_memorisation_has_one_fact_a_key_in_all_examples():
    data = task("memorisation")
    known: dict[int, int] = {}
    everything = [examples(data), data.val_windows(32)]
    for inputs, targets in everything:
        assert (inputs[:, 1::2] == 255).all()
        assert (targets[:, 0::2] == IGNORED).all()
        for key, value in zip(inputs[:, 0::2].ravel().tolist(), targets[:, 1::2].ravel().tolist(), strict=True):
            assert known.setdefault(key, value) == value
    assert sorted(known) == list(range(127))
    assert len(set(known.values())) == 127
    assert min(known.values()) >= 127
    assert max(known.values()) <= 254
    assert stats.chisquare(np.bincount(everything[0][0][:, 0::2].ravel())).pvalue > 1e-3
    assert examples(task("memorisation", task_seed=1))[1].tolist() != examples(data)[1].tolist()


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide", "sum_of_squares"])
def test_modular_arithmetic_is_right_and_split_once(operation):
    data = task("modular", modulus=13, operation=operation, train_fraction=0.3)
    train, held_out = data.task.train, data.task.held_out
    seen = set()
    for inputs, targets in (train, held_out):
        for (a, op, b, equals), y in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert (op, equals) == (13, 14)
            c = y[-1]
            assert y[:-1] == [IGNORED] * 3
            right = {
                "add": (a + b - c) % 13,
                "subtract": (a - b - c) % 13,
                "multiply": (a * b - c) % 13,
                "divide": (c * b - a) % 13,
                "sum_of_squares": (a * a + b * b - c) % 13,
            }
            assert right[operation] == 0
            seen.add((a, b))
    n = 13 * 12 if operation == "divide" else 169
    assert len(seen) == len(train[0]) + len(held_out[0]) == n
    assert len(train[0]) == round(0.3 * n)
    epoch = [data.batch(step, data_seed=0, batch_size=10, context_length=4) for step in range(len(train[0]) // 10)]
    assert {tuple(row[[0, 2]]) for row in np.concatenate(epoch)} <= {tuple(row[[0, 2]]) for row in train[0]}


# --- input that cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mqar", {"n_pairs": 40}, "40 pairs and their queries take 160 tokens: give at most data.n_pairs=16"),
        ("mqar", {"vocab_size": 16}, "has 7 keys, and data.n_pairs=8 need .* at least data.vocab_size=18"),
        ("mqar", {"length": 65}, "give an even length"),
        ("mqar", {"length_factors": [0.1]}, "length_factors=0.1 asks for examples of 6 tokens"),
        ("recall", {"noise_fraction": 0.5}, "give both or neither"),
        ("noisy_recall", {"noise_vocab_size": 30}, "leaves 2 tokens for keys and values"),
        ("selective_copying", {"n_copied": 64}, "at most data.n_copied=31, or at least model.context_length=130"),
        ("memorisation", {"length": 31}, "give an even length"),
        ("modular", {"length": 8}, "give model.context_length=4"),
        ("modular", {"modulus": 9, "operation": "divide"}, "give a prime"),
        ("copy", {"max_length": 65}, "give at most data.max_length=12"),
        ("induction", {"length": 2}, "take 3 tokens"),
        ("compression", {"length": 1}, "give 2 tokens at least"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_words(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        task(name, **changes)


@pytest.mark.parametrize(
    ("group", "changes", "given", "message"),
    [
        ("data", {"n_pairs": 40}, {}, "model.context_length=24: data.n_pairs=40"),
        ("data", {"power": 0.0}, {}, "data.power=0.0: input should be greater than 0"),
        ("data", {"n_pair": 4}, {}, "data.n_pair: unknown key"),
        ("data", {}, {"tokenizer": "bytes"}, "tokenizer=bytes has no effect beside data=mqar"),
        ("data", {}, {"tokenizer.vocab_size": 64}, "tokenizer.vocab_size=64 has no effect"),
        ("runtime", {"evaluate_lengths": [1.0]}, {}, "data.length_factors is the key"),
        ("objective", {"kind": "prefix", "prefix_share": 0.5, "prefix_draw": "fixed"}, {}, "use objective=causal"),
    ],
)
def test_what_does_not_go_with_a_task_is_refused_before_any_compute(group, changes, given, message):
    raw = request("data=mqar", "data.n_pairs=4")
    raw[group] |= changes
    with pytest.raises(ConfigError, match=message):
        from_request(raw, given)


def test_a_task_has_no_text_to_write():
    with pytest.raises(ConfigError, match="data=mqar is a task with tokens of its own"):
        task("mqar").encode("a word")


def test_lengths_of_a_task_rise():
    assert all(a < b for a, b in pairwise(task("mqar").val_lengths()))
    assert task("mqar", length_factors=None).val_lengths() == {}
