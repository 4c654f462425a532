"""Expected calibration error against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import binned_statistic

from lmablate.evaluate.calibration import calibration


def test_a_coin_that_is_always_surer_than_right_has_its_excess_as_error():
    """Confidence c, right in a share a of all cases: |a - c|, whatever the bins."""
    correct = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1])
    for bins in (1, 7, 15):
        assert calibration(torch.full((8,), 0.9), correct, bins).ece == pytest.approx(0.9 - 5 / 8, abs=1e-7)


def test_predictions_as_right_as_they_are_sure_have_none():
    confidence = torch.tensor([0.25] * 4 + [0.5] * 4 + [0.75] * 4 + [1.0] * 4, dtype=torch.float64)
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    assert calibration(confidence, correct, bins=4).ece == 0
    # Two bins mix 0.25 with 0.5, each right as often as it says, and so is the mixture.
    assert calibration(confidence, correct, bins=2).ece == pytest.approx(0, abs=1e-15)


def test_errors_of_opposite_sign_cancel_within_a_bin_and_not_across():
    confidence = torch.tensor([0.6, 0.8], dtype=torch.float64)
    correct = torch.tensor([1, 0])
    assert calibration(confidence, correct, bins=1).ece == pytest.approx(0.2)  # |(0.4 - 0.8) / 2|
    assert calibration(confidence, correct, bins=10).ece == pytest.approx(0.6)  # (0.4 + 0.8) / 2


def test_an_edge_belongs_to_the_bin_below():
    """In the paper bin m is ((m - 1) / M, m / M]."""
    for dtype in (torch.float32, torch.float64):
        edges = torch.arange(16, dtype=dtype) / 15
        table = calibration(edges, torch.ones(16), bins=15).table
        assert [row.count for row in table] == [2, *[1] * 14]  # 0 joins the first
        assert table[0].low == 0 and table[-1].high == 1


def test_bins_are_scipys_and_the_error_is_their_weighted_gap():
    rng = np.random.default_rng(0)
    confidence = rng.beta(2, 3, 5000)
    correct = rng.random(5000) < confidence**1.3
    found = calibration(torch.from_numpy(confidence), torch.from_numpy(correct))
    for name, values in (("confidence", confidence), ("accuracy", correct)):
        means, _, _ = binned_statistic(confidence, values, "mean", bins=15, range=(0, 1))
        ours = [np.nan if getattr(row, name) is None else getattr(row, name) for row in found.table]
        np.testing.assert_allclose(ours, means, rtol=1e-12)
    counts, _, _ = binned_statistic(confidence, confidence, "count", bins=15, range=(0, 1))
    assert [row.count for row in found.table] == counts.tolist()
    gaps = [abs(row.accuracy - row.confidence) * row.count for row in found.table if row.count]
    assert found.ece == pytest.approx(sum(gaps) / 5000, rel=1e-12)
    assert 0.02 < found.ece < 0.1


def test_half_precision_is_binned_in_single():
    confidence = torch.rand(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    correct = torch.ones(1000)
    assert calibration(confidence, correct).ece == pytest.approx(1 - confidence.double().mean().item())


@pytest.mark.parametrize(
    ("confidence", "correct"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([-0.1], [1]), ([float("nan")], [1])]
)
def test_what_is_no_probability_is_refused(confidence, correct):
    with pytest.raises(ValueError):
        calibration(torch.tensor(confidence), torch.tensor(correct))
