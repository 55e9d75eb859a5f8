"""Blends of rows by the compiled product, against float64."""

import sys

import pytest
import torch

from glue_cli.blend.recipe import Recipe
from glue_cli.search.bank import fused
from glue_cli.search.bank import matrix as bank
from glue_cli.search.bank.load import load_bank

needs_numba = pytest.mark.skipif(
    fused.load_fused_product() is None, reason="needs numba: pip install 'glue-cli[fast]'"
)


@pytest.fixture
def shared(monkeypatch):
    """Large models' blocks and threads, for small ones."""
    monkeypatch.setattr(bank, "_SHARED_COLUMNS", 0)
    monkeypatch.setattr(bank, "_FUSED_COLUMNS", 0)
    monkeypatch.setattr(bank, "_FUSED_BLOCK", 5000)
    monkeypatch.setattr(bank, "_SCRATCH", 18_000)


@needs_numba
@pytest.mark.parametrize("n_experts", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("n_blends", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 8191, 8192, 8193, 20_000])
def test_equals_the_product_in_float64_and_writes_nothing_else(n_experts, n_blends, n):
    draws = torch.Generator().manual_seed(n)
    rows = torch.randn(n_experts, n + 50, generator=draws)[:, 20 : 20 + n]
    by_group = torch.rand(n_blends, 2, n_experts, generator=draws).softmax(2)
    out = torch.full((n_blends, n + 7), -9.0)
    multiply = fused.load_fused_product()
    multiply(by_group[:, 1], rows, out[:, 3 : 3 + n])
    wanted = by_group[:, 1].double() @ rows.double()
    torch.testing.assert_close(out[:, 3 : 3 + n].double(), wanted, rtol=0, atol=2e-6)
    assert (out[:, :3] == -9).all() and (out[:, 3 + n :] == -9).all()


@needs_numba
def test_what_is_no_number_stays_none():
    rows = torch.ones(5, 100)
    rows[2, 7], rows[4, 9] = float("nan"), float("inf")
    out = torch.empty(1, 100)
    fused.load_fused_product()(torch.full((1, 5), 0.2), rows, out)
    assert out[0, 7].isnan() and out[0, 9].isinf() and out[0].isfinite().sum() == 98


def draw(seed, dtype):
    random = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(60, 401, generator=random).to(dtype), "b": torch.randn(17_001, generator=random)}


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_bank_is_blended_as_without_numba(save, shared, monkeypatch, dtype):
    checkpoints = [save(str(k), draw(k, dtype)) for k in range(6)]
    recipe = Recipe(("first", "second"), {"a": 0, "b": 1})
    alphas = torch.rand(2, 2, 6, dtype=torch.float64).softmax(2)
    found = {}
    for n_threads, is_fused in ((1, True), (3, True), (3, False)):
        torch.set_num_threads(n_threads)
        if not is_fused:
            monkeypatch.setattr(bank, "load_fused_product", lambda: None)
        one = load_bank(checkpoints, device=torch.device("cpu"), recipe=recipe)
        found[n_threads, is_fused] = out = torch.full((2, one.n_columns), float("nan"))
        one.blend(alphas, out)
    assert torch.equal(found[1, True], found[3, True])
    torch.testing.assert_close(found[3, True], found[3, False], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["device", "disk"])
def test_small_banks_and_those_on_disk_do_without(save, monkeypatch, kind):
    monkeypatch.setattr(bank, "load_fused_product", None)  # to be called by nobody
    if kind == "disk":
        monkeypatch.setattr(bank, "_FUSED_COLUMNS", 0)
    load_bank([save("a", draw(0, torch.float32))], device=torch.device("cpu"), kind=kind)


def test_without_numba_blas_multiplies(save, shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError, as where NumPy does not suit it
    monkeypatch.setattr(bank, "load_fused_product", fused.load_fused_product.__wrapped__)
    assert bank.load_fused_product() is None
    one = load_bank([save("a", draw(0, torch.float32))], device=torch.device("cpu"))
    out = torch.empty(1, one.n_columns)
    one.blend(torch.ones(1, 1, 1), out)
    assert torch.equal(one.spans["a"].view(out[0]), draw(0, torch.float32)["a"])
