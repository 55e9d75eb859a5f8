"""Experts that have nothing in common are told from a sample of their weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.blend.recipe import Recipe
from glue_cli.blend.relatedness import unrelated_experts
from glue_cli.checkpoints.read import read_checkpoint


@pytest.fixture
def expert(tmp_path):
    def write(name, start, *, seed=0, drift=0.3, n_layers=20, side=40, dtype=torch.float32):
        """Write an expert that went from a start, a seed, as far as `drift` of its length."""
        begun, gone = torch.Generator().manual_seed(start), torch.Generator().manual_seed(1000 + seed)
        tensors = {}
        for layer in range(n_layers):
            weight = torch.randn(side, side, generator=begun)
            weight += drift * torch.randn(side, side, generator=gone)
            tensors |= {f"{layer}.weight": weight.to(dtype), f"{layer}.norm": torch.ones(side)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return read_checkpoint(tmp_path / f"{name}.safetensors")

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_experts_of_one_start_are_not_told(expert, dtype):
    experts = [expert(f"e{k}", 0, seed=k, drift=0.8, dtype=dtype) for k in range(4)]
    assert unrelated_experts(experts, Recipe()) == []


def test_experts_of_starts_of_their_own_are_all_named(expert):
    [said] = unrelated_experts([expert("one", 1), expert("two", 2), expert("three", 3)], Recipe())
    assert "one.safetensors, two.safetensors, three.safetensors are unrelated (cosine" in said


def test_the_one_expert_of_another_start_is_named(expert):
    [said] = unrelated_experts([expert("one", 1), expert("odd", 2), expert("three", 1, seed=3)], Recipe())
    assert "the weights of odd.safetensors and the other experts are unrelated" in said


def test_experts_in_another_order_of_their_units_are_told(expert, tmp_path):
    one = expert("one", 1, n_layers=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    permuted = {
        name: t[order][:, order] if t.dim() == 2 else t for name, t in load_file(tmp_path / "one.safetensors").items()
    }
    save_file(permuted, tmp_path / "permuted.safetensors")
    assert unrelated_experts([one, read_checkpoint(tmp_path / "permuted.safetensors")], Recipe())


def test_a_handful_of_weights_says_nothing(expert):
    assert unrelated_experts([expert(f"e{k}", k, n_layers=1, side=8) for k in range(2)], Recipe()) == []


def test_what_is_copied_from_one_expert_is_not_compared(expert):
    experts = [expert("one", 1, n_layers=1), expert("two", 2, n_layers=1)]
    assert unrelated_experts(experts, Recipe(copied_from={"0.weight": 0})) == []
