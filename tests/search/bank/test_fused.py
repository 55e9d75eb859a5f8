"""Blends of rows by what is compiled, against float64 and torch."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from glue_cli.blend.recipe import Recipe
from glue_cli.search.bank import fused
from glue_cli.search.bank import matrix as bank
from glue_cli.search.bank.fused import FusedTile, Stored
from glue_cli.search.bank.load import load_bank

needs_numba = pytest.mark.skipif(not fused.is_available(), reason="needs numba: pip install 'glue-cli[fast]'")


@pytest.fixture
def shared(monkeypatch):
    """Large models' blocks and threads, for small ones."""
    monkeypatch.setattr(bank, "_SHARED_COLUMNS", 0)
    monkeypatch.setattr(bank, "_FUSED_COLUMNS", 0)
    monkeypatch.setattr(bank, "_FUSED_BLOCK", 5000)


def tile_of(rows, n, *, first=0, start=3, group=1):
    """A tile of n columns of experts' rows from `first` on, in the columns of `out` from `start` on."""
    stored = Stored.of(list(rows))
    assert stored is not None
    return FusedTile(stored, first, slice(start, start + n), group)


@needs_numba
@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_product_in_float64_and_writes_nothing_else(n, dtype):
    for n_experts, n_blends in itertools.product([1, 2, 3, 4, 5, 7, 8, 13], [1, 2, 5]):
        check_product(n_experts, n_blends, n, dtype)


def check_product(n_experts, n_blends, n, dtype):
    draws = torch.Generator().manual_seed(n)
    rows = torch.randn(n_experts, n + 50, generator=draws).to(dtype)[:, 20 : 40 + n]
    by_group = torch.rand(n_blends, 2, n_experts, generator=draws).softmax(2)
    out = torch.full((n_blends, n + 7), -9.0)
    tile = tile_of(rows, n, first=20)
    tile.blend(by_group, out)
    tile.make()
    wanted = by_group[:, 1].double() @ rows[:, 20:].double()
    torch.testing.assert_close(out[:, 3 : 3 + n].double(), wanted, rtol=0, atol=2e-6)
    assert (out[:, :3] == -9).all() and (out[:, 3 + n :] == -9).all()


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_as_torch_does(dtype):
    rows = torch.randn(4, 70_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows[:, :3] = torch.tensor([3.4e38, float("nan"), float("-inf")])  # the first is rounded to infinity
    rows[0, 3:9], rows[1:, 3:9] = torch.tensor([1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 1e-40]), 0  # halfway
    alphas = torch.tensor([[[1.0, 0, 0, 0]], [[0.1, 0.2, 0.3, 0.4]]])
    exact, rounded = torch.empty(2, 70_000), torch.empty(2, 70_000, dtype=torch.bfloat16)
    for out in (exact, rounded):
        tile = tile_of(rows, 70_000, start=0, group=0)
        tile.blend(alphas, out)
        tile.make()
    assert torch.equal(exact.to(torch.bfloat16).nan_to_num(7), rounded.nan_to_num(7))
    assert rounded[1, :3].tolist()[::2] == [float("inf"), float("-inf")] and rounded[1, 1].isnan()


@needs_numba
@pytest.mark.parametrize("radius", [0.0, 0.03, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("is_apart", [True, False])
def test_moves_a_blend_as_torch_does_bit_for_bit(radius, is_apart):
    """Columns of other groups are copied, and those that no expert has are zeros."""
    draws = torch.Generator().manual_seed(2)
    rows = torch.randn(3, 2000, generator=draws).to(torch.bfloat16)
    out = torch.full((4, 2016), -9.0)
    alphas = torch.rand(1, 2, 3, generator=draws).softmax(2)
    tile = tile_of(rows, 2016, start=0)
    tile.blend(alphas, out)
    if is_apart:  # as for a blend that was made before
        tile.make()
        tile = tile_of(rows, 2016, start=0)
    tile.move(out[0], 1, 2, radius, out[1])
    tile.move(out[0], 0, 2, radius, out[2])
    tile.move(out[0], None, 0, radius, out[3])
    tile.make()
    for row, expert in ((1, 2), (3, 0)):
        assert torch.equal(out[row, :2000], torch.lerp(out[0, :2000], rows[expert].float(), radius))
    assert torch.equal(out[2], out[0]) and not out[:, 2000:].any()


@needs_numba
def test_what_is_no_number_stays_none():
    rows = torch.ones(5, 100)
    rows[2, 7], rows[4, 9] = float("nan"), float("inf")
    out = torch.empty(1, 100)
    tile = tile_of(rows, 100, start=0, group=0)
    tile.blend(torch.full((1, 1, 5), 0.2), out)
    tile.make()
    assert out[0, 7].isnan() and out[0, 9].isinf() and out[0].isfinite().sum() == 98


@needs_numba
def test_threads_that_begin_together_compile_once():
    fused._compile.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: fused._compiled(2, 2), range(4)))
    assert len(found) == 1


def test_only_float32_and_bfloat16_on_the_cpu_are_taken_as_they_are():
    assert Stored.of([torch.ones(3, dtype=torch.float16)]) is None
    assert Stored.of([torch.ones(3, device="meta")]) is None


def draw(seed, dtype):
    random = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(60, 401, generator=random).to(dtype), "b": torch.randn(17_001, generator=random)}


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_bank_is_blended_as_without_numba(save, shared, monkeypatch, dtype):
    checkpoints = [save(str(k), draw(k, dtype)) for k in range(6)]
    recipe = Recipe(("first", "second"), {"a": 0, "b": 1})
    alphas = torch.rand(2, 2, 6, dtype=torch.float64).softmax(2)
    found = {}
    for n_threads, is_fused in ((1, True), (3, True), (3, False)):
        torch.set_num_threads(n_threads)
        if not is_fused:
            monkeypatch.setattr(bank, "is_available", lambda: False)
        one = load_bank(checkpoints, device=torch.device("cpu"), recipe=recipe)
        found[n_threads, is_fused] = out = torch.full((2, one.n_columns), float("nan"))
        one.blend(alphas, out)
    assert torch.equal(found[1, True], found[3, True])
    torch.testing.assert_close(found[3, True], found[3, False], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["device", "disk"])
def test_small_banks_and_those_on_disk_do_without(save, monkeypatch, kind):
    monkeypatch.setattr(bank, "is_available", None)  # to be called by nobody
    if kind == "disk":
        monkeypatch.setattr(bank, "_FUSED_COLUMNS", 0)
    load_bank([save("a", draw(0, torch.float32))], device=torch.device("cpu"), kind=kind)


def test_without_numba_torch_blends(save, shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError, as where NumPy does not suit it
    monkeypatch.setattr(bank, "is_available", fused.is_available.__wrapped__)
    assert not bank.is_available()
    one = load_bank([save("a", draw(0, torch.float32))], device=torch.device("cpu"))
    out = torch.empty(1, one.n_columns)
    one.blend(torch.ones(1, 1, 1), out)
    assert torch.equal(one.spans["a"].view(out[0]), draw(0, torch.float32)["a"])
