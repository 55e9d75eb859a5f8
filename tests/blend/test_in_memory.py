import os
from collections import Counter

import pytest
import torch
from destinations import destination_of
from safetensors.torch import load_file

from glue_cli.blend.in_memory import blend_tensors
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

RECIPE = Recipe(("a", "b"), {"late.weight": 1}, {"own": 2, "ids": 1}, {"head": (4, 3)})
ALPHAS = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]


def draw(seed):
    random = torch.Generator().manual_seed(seed)
    shapes = {"early.weight": (7, 9), "late.weight": (11,), "own": (5,), "head": (seed + 1, 3)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()} | {"ids": torch.arange(seed)}


@pytest.fixture
def shards(save, tmp_path):
    """Return an expert in three shards."""

    def shards(name, tensors):
        whole = save(f"{name}-whole", tensors)
        destination = destination_of(tmp_path / f"{name}.safetensors", [whole], max_shard_bytes=100)
        blend_files([whole], [[1.0]], destination, lambda hashes: {})
        assert len(destination.files) >= 3
        return read_checkpoint(destination.result)

    return shards


def test_what_all_experts_have_alike_keeps_its_bits(save):
    tensors = {"index": torch.arange(2000.0), "mask": torch.full((3,), torch.finfo(torch.float32).min)}
    experts = [save(str(k), tensors | {"own": draw(k)["own"]}) for k in range(6)]
    found = dict(blend_tensors(experts, [[1 / 6] * 6], PLAIN))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_groups_copies_and_what_is_made_apart(save):
    experts = [draw(seed) for seed in range(3)]
    checkpoints = [save(str(k), expert) for k, expert in enumerate(experts)]
    found = dict(blend_tensors(checkpoints, ALPHAS, RECIPE))
    assert found.keys() == {"early.weight", "late.weight", "own", "ids"}
    mean = sum(a * expert["early.weight"].double() for a, expert in zip(ALPHAS[0], experts, strict=True))
    torch.testing.assert_close(found["early.weight"], mean.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(found["late.weight"], experts[1]["late.weight"])
    assert torch.equal(found["own"], experts[2]["own"]) and torch.equal(found["ids"], experts[1]["ids"])


def test_each_shard_is_opened_once(shards, monkeypatch):
    experts = [shards(str(seed), {f"layer{i}": torch.randn(16) for i in range(6)}) for seed in range(2)]
    opened, real_open = Counter(), os.open

    def count(path, *arguments):
        opened[os.fspath(path)] += 1
        return real_open(path, *arguments)

    monkeypatch.setattr("glue_cli.checkpoints.files.os.open", count)
    before = len(os.listdir("/proc/self/fd"))
    found = dict(blend_tensors(experts, [[0.5, 0.5]], PLAIN))
    assert len(found) == 6 and len(os.listdir("/proc/self/fd")) == before
    assert opened == {str(file): 1 for expert in experts for file in expert.files}


def test_the_blend_is_that_of_the_file(save, tmp_path):
    checkpoints = [save(str(seed), {"w": torch.randn(300, 500), "b": torch.randn(7)}) for seed in range(3)]
    destination = destination_of(tmp_path / "blend.safetensors", checkpoints)
    blend_files(checkpoints, ALPHAS[:1], destination, lambda hashes: {})
    written = load_file(tmp_path / "blend.safetensors")
    found = dict(blend_tensors(checkpoints, ALPHAS[:1], PLAIN))
    for name, tensor in written.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_expert_that_is_not_finite_is_refused_where_it_takes_part(save, wrong):
    checkpoints = [save("good", {"w": torch.ones(3)}), save("bad", {"w": torch.tensor([1.0, wrong, 1.0])})]
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: 'w' has {wrong}"):
        dict(blend_tensors(checkpoints, [[0.5, 0.5]], PLAIN))
    assert torch.equal(dict(blend_tensors(checkpoints, [[1.0, 0.0]], PLAIN))["w"], torch.ones(3))


def test_an_expert_that_changes_meanwhile_is_noticed(save):
    checkpoints = [save(str(seed), {"a": torch.randn(3), "b": torch.randn(3)}) for seed in range(2)]
    tensors = blend_tensors(checkpoints, [[0.5, 0.5]], PLAIN)
    next(tensors)
    os.utime(checkpoints[1].files[0], ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"1\.safetensors' changed while it was read"):
        list(tensors)
