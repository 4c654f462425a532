"""The products of sorted rows with their experts' matrices, against one product for each expert on its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmablate.model.ffn import grouped
from lmablate.model.ffn.grouped import Rows, grouped_product, has_grouped_gemm, product_step, row_slices

SIZES = [[40, 0, 31, 32, 90], [1, 2, 3], [33], [0, 0, 7, 64], [32, 1], [5, 100, 0]]


def rows_of(sizes, dropped=0):
    """Rows that stand sorted as they are."""
    of = torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([*sizes, dropped]))
    return Rows(torch.arange(len(of)), torch.arange(len(of)), of, torch.tensor(sizes))


@given(st.lists(st.integers(0, 150), min_size=1, max_size=9), st.sampled_from([1, 8, 32]))
@settings(max_examples=200, deadline=None)
def test_what_is_written_last_to_a_row_is_of_its_own_expert(sizes, step):
    owner = torch.full((sum(sizes),), -1)
    lengths = []
    for e, rows in row_slices(sizes, step):
        assert 0 <= rows.start < rows.stop <= sum(sizes)
        owner[rows] = e
        lengths.append(rows.stop - rows.start)
    assert owner.tolist() == [e for e, n in enumerate(sizes) for _ in range(n)]
    assert all(n % step == 0 or n < step for n in lengths)
    assert sum(n % step != 0 for n in lengths) <= step  # short ones stand among the first rows alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dropped", [0, 9])
@pytest.mark.parametrize("kernel", [False, True], ids=["loop", "torch's grouped product"])
def test_products_and_gradients_are_those_of_each_expert_alone(monkeypatch, kernel, sizes, dropped, dtype):
    # On a CPU torch's grouped product is a loop of its own, with the meaning it has on a GPU.
    monkeypatch.setattr(grouped, "has_grouped_gemm", lambda x, weight: kernel)
    torch.manual_seed(0)
    n = sum(sizes)
    x = torch.randn(n + dropped, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(sizes), 16, 24, dtype=dtype, requires_grad=True)
    gradient = torch.randn(n + dropped, 16, dtype=dtype)
    y = grouped_product(x, weight, rows_of(sizes, dropped))
    y.backward(gradient)

    # As float64, from the same rounded numbers: only the products' own rounding is left.
    rows, matrices = (t.detach().double().requires_grad_() for t in (x, weight))
    each = [part @ w.T for part, w in zip(rows[:n].split(sizes), matrices, strict=True)]
    want = torch.cat([*each, torch.zeros(dropped, 16, dtype=torch.float64)])
    want.backward(gradient.double())
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(y.detach().double(), want.detach(), **near)
    torch.testing.assert_close(x.grad.double(), rows.grad, **near)
    torch.testing.assert_close(weight.grad.double(), matrices.grad, **near)
    assert not y[n:].any() and not x.grad[n:].any()
    assert not weight.grad[[not size for size in sizes]].any()


def test_a_row_is_the_same_wherever_its_expert_stands():
    torch.manual_seed(0)
    x, weight = torch.randn(70, 24).bfloat16(), torch.randn(2, 16, 24).bfloat16()
    together = grouped_product(torch.cat([torch.randn(45, 24).bfloat16(), x]), weight, rows_of([45, 70]))[45:]
    assert torch.equal(together, grouped_product(x, weight[1:], rows_of([70])))


def test_other_numbers_of_rows_do_not_make_other_shapes():
    step = product_step(torch.empty(0, dtype=torch.bfloat16))
    shapes = {rows.stop - rows.start for n in range(300, 400) for _, rows in row_slices([512, n, 512], step)}
    assert step > 1 and len(shapes) <= 2 + 100 // step + 1
    assert product_step(torch.empty(0)) == 1


def test_torchs_grouped_product_is_for_bf16_on_a_gpu_alone():
    x, weight = torch.randn(8, 24), torch.randn(2, 16, 24)
    assert not has_grouped_gemm(x, weight) and not has_grouped_gemm(x.bfloat16(), weight.bfloat16())
