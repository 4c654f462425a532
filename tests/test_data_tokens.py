"""Batches are a pure function of the step, and validation predicts every token once."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_support import bpe, synthetic

from lmablate.data import DataError, TokenData, prepare
from lmablate.data.tokens import IGNORED


def ring(n: int, val: int = 5) -> TokenData:
    """Token data in which a training token is its own position."""
    return TokenData(
        vocab_size=n,
        eot_id=0,
        train=np.arange(n, dtype=np.uint32),  # type: ignore[arg-type]
        val=np.arange(1, val + 1, dtype=np.uint16),
        val_bytes=val,
        fingerprint="text",
        tokenizer_fingerprint="tokenizer",
        unigram_val_loss=1.0,
        entropy_floor=None,
        tokenizer_path=Path("none"),
        texts=(),
    )


def test_rows_are_consecutive_tokens_of_the_ring():
    data = ring(1003)
    batch = data.batch(7, data_seed=3, batch_size=16, context_length=10)
    assert batch.shape == (16, 11)
    assert batch.dtype == np.int64
    assert type(batch) is np.ndarray
    np.testing.assert_array_equal(batch[:, 1:], (batch[:, :-1] + 1) % 1003)


def test_batch_does_not_depend_on_what_was_asked_before():
    fresh = ring(1003).batch(40, data_seed=5, batch_size=8, context_length=10)
    used = ring(1003)
    for step in (200, 3, 41, 39):
        used.batch(step, data_seed=step, batch_size=4, context_length=10)
        used.batch(step, data_seed=5, batch_size=4, context_length=7)
    np.testing.assert_array_equal(used.batch(40, data_seed=5, batch_size=8, context_length=10), fresh)


def test_batch_is_equal_in_another_process(tmp_path: Path):
    code = (
        "import sys, hashlib; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from data_support import bpe, synthetic; from lmablate.data import prepare\n"
        "data = prepare(synthetic(), bpe(), context_length=16, cache=Path(sys.argv[2]))\n"
        "print(hashlib.sha256(data.batch(90, data_seed=1, batch_size=4, context_length=16).tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        check=True,
    )
    data = prepare(synthetic(), bpe(), context_length=16, cache=tmp_path / "own")
    batch = data.batch(90, data_seed=1, batch_size=4, context_length=16)
    assert other.stdout.strip() == hashlib.sha256(batch.tobytes()).hexdigest()


def test_an_epoch_uses_every_window_once():
    n, context = 1003, 10
    windows = n // context
    data = ring(n)

    def epoch(number: int) -> np.ndarray:
        steps = range(number * windows, (number + 1) * windows)
        return np.concatenate(
            [data.batch(step, data_seed=0, batch_size=1, context_length=context)[:, 1:] for step in steps]
        )

    first, second = epoch(0), epoch(1)
    for targets in (first, second):
        assert len(np.unique(targets)) == windows * context
    assert not np.array_equal(first, second)
    # the cuts move too, so that a token is seen in other contexts
    assert first[0, 0] % context != second[0, 0] % context


def test_batches_continue_over_the_end_of_an_epoch():
    data = ring(1003)
    whole = data.batch(0, data_seed=2, batch_size=250, context_length=10)  # two and a half epochs
    parts = [data.batch(step, data_seed=2, batch_size=25, context_length=10) for step in range(10)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_data_seed_changes_the_order():
    data = ring(1003)
    first, second = (data.batch(0, data_seed=seed, batch_size=8, context_length=10) for seed in (0, 1))
    assert not np.array_equal(first, second)
    data.batch(0, data_seed=2**80, batch_size=8, context_length=10)  # any whole number will do


def test_order_is_the_same_on_every_machine_and_numpy():
    starts = ring(97).batch(1, data_seed=7, batch_size=6, context_length=8)[:, 0]
    assert starts.tolist() == [71, 79, 55, 47, 7, 87]


def test_only_the_epochs_in_use_are_kept():
    data = ring(1003)
    for step in range(0, 400, 10):
        data.batch(step, data_seed=0, batch_size=10, context_length=10)
    assert len(data._orders[0, 10]) == 1


def test_a_text_of_one_window_can_be_trained_on_and_a_shorter_one_cannot():
    assert ring(11).batch(3, data_seed=0, batch_size=4, context_length=10).shape == (4, 11)
    with pytest.raises(DataError, match=r"10 training tokens.*context_length=10 needs at least 11"):
        ring(10).batch(0, data_seed=0, batch_size=1, context_length=10)


@pytest.mark.parametrize(("count", "context"), [(5, 2), (6, 3), (5, 8), (1, 1), (1, 4)])
def test_validation_predicts_every_token_once_from_the_one_before(count: int, context: int):
    data = ring(100, val=count)
    inputs, targets = data.val_windows(context)
    assert inputs.shape == targets.shape
    assert inputs.shape[1] == context
    assert inputs.dtype == targets.dtype == np.int64
    predicted = targets != IGNORED
    np.testing.assert_array_equal(targets[predicted], data.val)
    np.testing.assert_array_equal(inputs[predicted], [data.eot_id, *data.val[:-1]])
    assert predicted.sum() == count
    assert predicted[:-1].all(), "only the last window may be padded"
