import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.recipe import Recipe
from glue_cli.foundation.errors import CheckpointError
from glue_cli.search.bank import load as bank_load
from glue_cli.search.bank import matrix as bank_module
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.matrix import ExpertBank, Tile
from glue_cli.search.bank.storage import ResidentRows
from glue_cli.search.points import Load, Move, each_alone, make_blends

CPU = torch.device("cpu")
SHAPES = {"conv.weight": (6, 5, 3, 3), "conv.bias": (6,), "scale": (), "wide": (333, 401), "odd": (7, 1, 5)}


def draw(seed, dtype=torch.float32, shapes=SHAPES):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def blend_rows(bank, alphas):
    out = torch.full((len(alphas), bank.n_columns), float("nan"), device=bank.device)
    bank.blend(torch.tensor(alphas, dtype=torch.float64)[:, None], out)
    return out


ALPHAS = [[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.05, 0.05, 0.9], [1 / 3, 1 / 3, 1 / 3]]


@pytest.mark.parametrize("fused", [0, 1 << 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blend_alone_has_the_bits_that_it_has_among_others(save, monkeypatch, dtype, fused):
    monkeypatch.setattr(bank_module, "_FUSED_COLUMNS", fused)
    bank = load_bank([save(str(k), draw(k, dtype)) for k in range(3)], device=CPU)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)[:, None]
    load = Load(alphas)
    passes = [load, Load(alphas[:1]), Move(alphas[1], None, 2, 0.1), Move(alphas[1], 0, 1, 0.3)]
    wanted = torch.zeros(4 + 3, bank.n_columns)
    make_blends(bank, [(load, 0)], wanted)
    for row, move in enumerate(passes[2:], 5):
        two = torch.zeros(2, bank.n_columns)
        make_blends(bank, [(passes[1], 0), (move, 1)], two)
        wanted[4], wanted[row] = two
    alone = [*each_alone([load]).values(), *each_alone(passes[1:]).values()]
    for found, one in zip(wanted, alone, strict=True):
        row = torch.full((1, bank.n_columns), float("nan"))
        make_blends(bank, [(one, 0)], row)
        assert torch.equal(row[0], found)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_probes_equal_independent_file_blends(save, blend, dtype, channels_last):
    experts = [save(str(k), draw(k, dtype)) for k in range(3)]
    bank = load_bank(experts, device=CPU, channels_last=channels_last)
    assert bank.n_experts == 3 and bank.spans.keys() == SHAPES.keys()
    rows = blend_rows(bank, ALPHAS)
    for row, alpha in zip(rows, ALPHAS, strict=True):
        wanted = blend(experts, alpha, dtype="F32")
        for name, span in bank.spans.items():
            torch.testing.assert_close(span.view(row), wanted[name], rtol=0, atol=2e-6)


def test_experts_of_several_dtypes(save, save_shards, blend):
    mixed = draw(0) | {"half": torch.randn(70_000).half(), "brain": torch.randn(9, 9).bfloat16()}
    other = draw(1) | {"half": torch.randn(70_000).half(), "brain": torch.randn(9, 9).double()}
    experts = [save_shards("a", mixed), save("b", other)]
    bank = load_bank(experts, device=CPU, channels_last=True)
    wanted = blend(experts, [0.25, 0.75], dtype="F32")
    row = blend_rows(bank, [[0.25, 0.75]])[0]
    for name, span in bank.spans.items():
        torch.testing.assert_close(span.view(row), wanted[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_halves(save, dtype):
    bank = load_bank([save(str(k), draw(k, dtype)) for k in range(2)], device=CPU, channels_last=False)
    assert {block.rows.matrix.dtype for block in bank._blocks} == {dtype}
    expert = draw(1, dtype)
    row = blend_rows(bank, [[0.0, 1.0]])[0]
    assert all(torch.equal(span.view(row), expert[name].float()) for name, span in bank.spans.items())


def test_rows_too_long_for_blas_are_blended_all_the_same(save, monkeypatch):
    checkpoints = [save(str(k), draw(k)) for k in range(3)]
    wanted = blend_rows(load_bank(checkpoints, device=CPU, channels_last=False), ALPHAS)
    monkeypatch.setattr(bank_module, "_LONGEST_STRIDE", 1000)
    bank = load_bank(checkpoints, device=CPU, channels_last=False)
    monkeypatch.setattr(torch, "mm", None)  # it would have to be told of the stride
    torch.testing.assert_close(blend_rows(bank, ALPHAS), wanted)


def test_layout_of_convolutions(save):
    expert = save("a", draw(0))
    for channels_last in (False, True):
        bank = load_bank([expert], device=CPU, channels_last=channels_last)
        row = blend_rows(bank, [[1.0]])[0]
        views = {name: span.view(row) for name, span in bank.spans.items()}
        assert all(torch.equal(views[name], tensor) for name, tensor in draw(0).items())
        format_ = torch.channels_last if channels_last else torch.contiguous_format
        assert views["conv.weight"].is_contiguous(memory_format=format_)
        views["conv.weight"].zero_()  # a view, not a copy
        assert row.count_nonzero() == sum(tensor.numel() for name, tensor in draw(0).items() if name != "conv.weight")


def test_what_is_not_blended_stays_out(save):
    kept = {"ids": torch.arange(4), "mask": torch.tensor([True]), "none": torch.empty(0, 3)}
    bank = load_bank([save("a", draw(0) | kept)], device=CPU, channels_last=False)
    assert bank.spans.keys() == SHAPES.keys()
    with pytest.raises(CheckpointError, match="has no floating-point tensors"):
        load_bank([save("b", kept)], device=CPU, channels_last=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_named(save, wrong, dtype):
    bad = draw(1, dtype)
    bad["wide"][200, 200] = wrong
    with pytest.raises(CheckpointError, match=rf"b\.safetensors: 'wide' has {wrong}"):
        load_bank([save("a", draw(0, dtype)), save("b", bad)], device=CPU, channels_last=False)


def test_large_numbers_are_no_fault(save):
    largest = torch.full((9,), torch.finfo(torch.float16).max, dtype=torch.float16)  # their sum overflows
    bank = load_bank([save("a", {"w": largest})], device=CPU, channels_last=False)
    assert bank.spans["w"].view(blend_rows(bank, [[1.0]])[0]).max() == 65504


def test_a_file_that_changed_since_its_header_was_read(save, tmp_path):
    expert = save("a", draw(0))
    save_file(draw(0, shapes={"conv.weight": (9, 9)}), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_bank([expert], device=CPU, channels_last=False)


def close_experts(n_experts, spread):
    """Experts that differ from each other by `spread` of their size, as finetuned siblings do."""
    random = torch.Generator().manual_seed(9)
    base = torch.randn(300_001, generator=random)
    return [{"w": base + spread * torch.randn(300_001, generator=random)} for _ in range(n_experts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inner_products_keep_their_digits_though_the_experts_are_close(save, dtype):
    spread = 1e-4 if dtype == torch.float32 else 1e-2
    experts = [{"w": expert["w"].to(dtype)} for expert in close_experts(4, spread)]
    bank = load_bank([save(str(k), expert) for k, expert in enumerate(experts)], device=CPU, channels_last=False)
    theta = blend_rows(bank, [[0.1, 0.2, 0.3, 0.4]])[0]
    gradient = torch.randn(bank.n_columns, generator=torch.Generator().manual_seed(1))
    (found,) = bank.inner_products(gradient, theta)
    assert found.dtype == torch.float64
    n = len(experts[0]["w"])
    matrix = torch.stack([expert["w"] for expert in experts])
    wanted = (matrix.double() - theta[:n].double()) @ gradient[:n].double()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    if dtype == torch.float32:
        naive = (matrix @ gradient[:n] - theta[:n] @ gradient[:n]).double()
        assert (naive - wanted).norm() > 1e-4 * wanted.norm()


def test_inner_products_over_several_dtypes(save):
    experts = [draw(k) | {"half": torch.randn(70_000).half()} for k in range(2)]
    bank = load_bank([save(str(k), expert) for k, expert in enumerate(experts)], device=CPU, channels_last=True)
    theta = blend_rows(bank, [[0.5, 0.5]])[0]
    gradient = torch.randn(bank.n_columns)
    views = [(span.view(gradient).double(), span.view(theta).double(), name) for name, span in bank.spans.items()]
    wanted = [sum((g * (expert[name].double() - t)).sum().item() for g, t, name in views) for expert in experts]
    # a sum of 200,000 terms near 1 is about 400; the tolerance is 3e-6 of that
    assert bank.inner_products(gradient, theta)[0].tolist() == pytest.approx(wanted, abs=1.2e-3)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory that is held")
def test_inner_products_hold_no_memory_afterwards():
    torch.set_num_threads(2)
    columns = 9_000_000  # enough for threads
    bank = ExpertBank([(0, ResidentRows(torch.ones(8, columns)))], {}, n_experts=8, device=CPU)
    theta, gradient = torch.zeros(columns), torch.ones(columns)
    before = resident_bytes()
    for _ in range(2):
        assert bank.inner_products(gradient, theta).tolist() == [[columns] * 8]
    assert resident_bytes() - before < 8 * columns  # a quarter of the bank


# ---- groups

GROUPS = Recipe(("convolutions", "rest"), {name: int(not name.startswith("conv")) for name in SHAPES})
BY_GROUP = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], [[1, 0, 0], [0.1, 0.1, 0.8]]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_group_has_coefficients_of_its_own(save, dtype):
    experts = [draw(k, dtype) for k in range(3)]
    bank = load_bank([save(str(k), expert) for k, expert in enumerate(experts)], device=CPU, recipe=GROUPS)
    assert (bank.n_groups, bank.n_experts) == (2, 3)
    out = torch.full((2, bank.n_columns), float("nan"))
    bank.blend(BY_GROUP, out)
    for row, alphas in zip(out, BY_GROUP, strict=True):
        for name, span in bank.spans.items():
            alpha = alphas[GROUPS.group_of[name]]
            wanted = sum(a * expert[name].double() for a, expert in zip(alpha, experts, strict=True))
            torch.testing.assert_close(span.view(row).double(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [0, 1])
def test_a_group_moves_towards_one_expert(save, dtype, group):
    experts = [draw(k, dtype) for k in range(3)]
    bank = load_bank([save(str(k), expert) for k, expert in enumerate(experts)], device=CPU, recipe=GROUPS)
    theta, moved = torch.zeros(1, bank.n_columns), torch.full((bank.n_columns,), float("nan"))
    bank.blend(BY_GROUP[:1], theta)
    before = theta.clone()
    bank.each_tile(lambda tile: tile.move(theta[0], group, 2, 0.3, moved))
    assert torch.equal(theta, before)
    for name, span in bank.spans.items():
        blend = span.view(theta[0]).double()
        share = 0.3 if GROUPS.group_of[name] == group else 0
        wanted = blend + share * (experts[2][name].double() - blend)
        torch.testing.assert_close(span.view(moved).double(), wanted, rtol=0, atol=2e-6 * (share > 0))


def test_inner_products_are_taken_group_by_group(save):
    experts = [draw(k) for k in range(3)]
    bank = load_bank([save(str(k), expert) for k, expert in enumerate(experts)], device=CPU, recipe=GROUPS)
    theta = torch.full((1, bank.n_columns), float("nan"))
    bank.blend(BY_GROUP[:1], theta)
    gradient = torch.randn(bank.n_columns)
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for name, span in bank.spans.items():
        for k, expert in enumerate(experts):
            difference = expert[name].double() - span.view(theta[0]).double()
            wanted[GROUPS.group_of[name], k] += (difference * span.view(gradient).double()).sum()
    found = bank.inner_products(gradient, theta[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.2e-3)  # as above
    assert ((BY_GROUP[0] * found).sum(1).abs() < 1.2e-3).all()  # the constant is the mean over alpha


def test_what_a_recipe_takes_from_elsewhere_stays_out(save):
    experts = [save(str(k), draw(k)) for k in range(2)]
    recipe = Recipe(copied_from={"wide": 1}, made={"odd": (9, 1, 5)})
    assert load_bank(experts, device=CPU, recipe=recipe).spans.keys() == SHAPES.keys() - {"wide", "odd"}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["device", "host", "disk"])
def test_cuda_equals_the_cpu(save, cuda, dtype, kind, monkeypatch):
    monkeypatch.setattr(bank_load, "_STAGED_BYTES", 50_000 * 4 * 3)  # so that there are several
    monkeypatch.setattr(bank_load, "_DISK_BUFFER_BYTES", 50_000 * 4 * (3 + 1))
    experts = [save(str(k), draw(k, dtype)) for k in range(3)]
    # on disk there is no padding, so that both have it or neither
    kinds = ["disk", "disk"] if kind == "disk" else ["device", kind]
    banks = [
        load_bank(experts, device=device, channels_last=True, kind=kind)
        for device, kind in zip((CPU, cuda), kinds, strict=True)
    ]
    gradient = torch.randn(banks[0].n_columns)
    for _ in range(2):
        rows = [blend_rows(bank, ALPHAS) for bank in banks]
        assert rows[1].device == cuda
        torch.testing.assert_close(rows[1].cpu(), rows[0], rtol=0, atol=2e-6)
        products = [
            bank.inner_products(gradient.to(bank.device), row[0]) for bank, row in zip(banks, rows, strict=True)
        ]
        torch.testing.assert_close(products[1].cpu(), products[0], rtol=1e-4, atol=1e-3)
        moved = [torch.full_like(row[0], float("nan")) for row in rows]
        for bank, row, out in zip(banks, rows, moved, strict=True):
            bank.each_tile(partial(Tile.move, theta=row[0], group=0, expert=1, radius=0.3, out=out))
        torch.testing.assert_close(moved[1].cpu(), moved[0], rtol=0, atol=2e-6)
