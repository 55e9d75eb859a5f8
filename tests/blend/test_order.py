"""Blends of experts whose files have their tensors in orders of their own."""

import hashlib
import random
import tracemalloc

import pytest
import torch
from destinations import destination_of
from safetensors.torch import load_file

from glue_cli.blend import to_files as blend_module
from glue_cli.blend.blocks import plan_blend, survey
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints import hashing as hashing_module
from glue_cli.foundation.errors import CheckpointError


def numbered(seed, n_tensors=24):
    """Tensors in the order of their numbers, which is not that of their names."""
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{i}.weight": torch.randn(i % 5, 3, generator=generator) for i in range(n_tensors)}


def shuffled(tensors, seed):
    return dict(random.Random(seed).sample(sorted(tensors.items()), len(tensors)))


def count_reads(monkeypatch, module):
    sizes, read = [], module.read_into

    def counted(descriptor, buffer, offset, path):
        sizes.append(len(buffer))
        read(descriptor, buffer, offset, path)

    monkeypatch.setattr(module, "read_into", counted)
    return sizes


def test_experts_of_one_order_are_read_in_it_and_once(save, save_in_order, blend, monkeypatch):
    tensors = [numbered(k) for k in range(2)]
    wanted = blend([save(f"sorted{k}", expert) for k, expert in enumerate(tensors)], [0.3, 0.7])
    content = blend.path.read_bytes()
    experts = [save_in_order(f"numbered{k}", expert) for k, expert in enumerate(tensors)]
    blended, hashed = count_reads(monkeypatch, blend_module), count_reads(monkeypatch, hashing_module)
    found = blend(experts, [0.3, 0.7])
    assert blend.path.read_bytes() == content and found.keys() == wanted.keys()
    assert blended == [experts[0].n_bytes] * 2  # every expert's tensors at once
    assert sum(hashed) == sum(expert.files[0].stat().st_size - expert.n_bytes for expert in experts)  # the headers
    assert blend.hashes == [hashlib.sha256(expert.files[0].read_bytes()).hexdigest() for expert in experts]


@pytest.mark.parametrize("slot_bytes", [12 * 5, 12 * 7, 1 << 20])
@pytest.mark.parametrize("max_shard_bytes", [None, 200])
def test_tensors_and_shards_may_begin_and_end_anywhere_in_a_block(
    save_in_order, tmp_path, monkeypatch, slot_bytes, max_shard_bytes
):
    monkeypatch.setattr(blend_module, "CHUNK", 1)
    monkeypatch.setattr(blend_module, "SLOT_BYTES", slot_bytes)
    extra = {"ids": torch.arange(9), "m.num_batches_tracked": torch.tensor(4), "mask": torch.tensor([True, False])}
    tensors = [{**extra, **numbered(k), "z": torch.randn(3).half()} for k in range(2)]
    for orders in ((tensors[0], tensors[1]), (tensors[0], shuffled(tensors[1], 0))):
        experts = [save_in_order(str(k), expert) for k, expert in enumerate(orders)]
        destination = destination_of(tmp_path / "out.safetensors", experts, max_shard_bytes=max_shard_bytes)
        blend_files(experts, [[0.5, 0.5]], destination, lambda hashes: {}, n_threads=3)
        found = {name: tensor for file in destination.files for name, tensor in load_file(file).items()}
        assert found.keys() == tensors[0].keys()
        for name, tensor in found.items():
            wanted = tensors[0][name] if name in extra else (tensors[0][name] + tensors[1][name]) / 2
            torch.testing.assert_close(tensor, wanted)


def test_a_number_that_is_none_is_named_whatever_the_order(save_in_order, blend):
    bad = numbered(1)
    bad["layers.13.weight"][2, 1] = float("nan")
    for good in (numbered(0), shuffled(numbered(0), 3)):
        with pytest.raises(CheckpointError, match=r"bad\.safetensors: 'layers\.13\.weight' has nan"):
            blend([save_in_order("good", good), save_in_order("bad", bad)], [0.5, 0.5])


def test_a_tensor_that_only_one_expert_has_does_not_hide_the_others_order(save_in_order, tmp_path):
    first = save_in_order("first", numbered(0))
    second = save_in_order("second", {"new.head": torch.ones(4), **numbered(1)})
    recipe = Recipe(copied_from={"new.head": 1})
    destination = destination_of(tmp_path / "out.safetensors", [first, second], recipe=recipe)
    plan = plan_blend([first, second], [[0.5, 0.5]], destination, recipe)
    blocks = list(plan.blocks(1 << 20, 1))
    assert [block.n_elements for block in blocks] == [first.n_bytes // 4, 4]


def test_the_blocks_cover_every_tensor_once_in_any_order(save_in_order, tmp_path):
    experts = [save_in_order(str(k), shuffled(numbered(k), k)) for k in range(3)]
    plan = plan_blend(experts, [[0.2, 0.8, 0.0]], destination_of(tmp_path / "o.safetensors", experts), PLAIN)
    blocks = list(plan.blocks(1, 4))
    parts = sorted((t.offset, t.offset + 4 * t.n_elements) for block in blocks for t in block.targets)
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == experts[0].n_bytes
    found = survey(iter(blocks), 3)
    assert (found.n_blocks, found.n_bytes) == (len(blocks), 2 * experts[0].n_bytes)
    assert found.buffer_bytes == 12 * 4
    assert found.in_file_order == [False, False, True]  # the third takes no part


def test_what_is_held_does_not_grow_with_the_experts(save_in_order, tmp_path):
    tensors = {f"layers.{i}.bias": torch.ones(1) for i in range(1000)}
    experts = [save_in_order(str(k), shuffled(tensors, k)) for k in range(8)]
    destination = destination_of(tmp_path / "out.safetensors", experts)
    tracemalloc.start()
    try:
        blend_files(experts, [[1 / 8] * 8], destination, lambda hashes: {}, n_threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1000 * len(tensors)  # bytes; the output's own header takes half of it, all blocks at once took 3500
