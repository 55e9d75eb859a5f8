"""Many experts' headers in little memory."""

import gc
import tracemalloc

import pytest
import torch

from glue_cli.checkpoints.read import read_checkpoint, read_experts
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError, UsageError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4), "c": torch.zeros(0, 5), "d": torch.tensor(2.5)}


def backwards(tensors):
    return dict(reversed(tensors.items()))


def assert_is_whole(expert):
    """Check that a reduced header says all that the file's own does."""
    whole = read_checkpoint(expert.path)
    assert dict(expert.entries) == whole.entries and len(expert.entries) == len(whole.entries)
    assert (expert.files, expert.metadata, expert.stamps) == (whole.files, whole.metadata, whole.stamps)
    for name, tensor in read_tensors(whole).items():
        assert torch.equal(read_tensors(expert, [name])[name], tensor)


def test_experts_of_one_layout_share_the_first_ones_entries(save):
    paths = [save(name, {n: t + k for n, t in TENSORS.items()}).path for k, name in enumerate("xyz")]
    experts = read_experts(paths)
    assert [expert.path for expert in experts] == paths
    assert all(expert.entries is experts[0].entries for expert in experts)
    for expert in experts:
        assert_is_whole(expert)


def test_an_expert_in_another_order_keeps_its_places_alone(save_in_order):
    paths = [save_in_order("x", TENSORS).path, save_in_order("y", backwards(TENSORS)).path]
    first, second = read_experts(paths)
    assert second.entries is not first.entries and not isinstance(second.entries, dict)
    assert list(second.entries) == list(first.entries)  # the first one's order
    assert second.entries["a"].offset != first.entries["a"].offset
    assert "e" not in second.entries and second.entries.get("e") is None
    with pytest.raises(KeyError):
        second.entries["e"]
    assert_is_whole(second)


def test_an_expert_in_shards_keeps_its_places(save, save_shards):
    file, shards = save("x", TENSORS), save_shards("y", TENSORS)
    for paths in ([file.path, shards.path], [shards.path, file.path]):
        experts = read_experts(paths)
        for expert in experts:
            assert_is_whole(expert)
    assert {entry.file for entry in read_experts([file.path, shards.path])[1].entries.values()} == {0, 1}


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.float16)},
        {"e": torch.zeros(1)},
    ],
)
def test_experts_that_differ_stay_whole(save, change):
    first, second = save("x", TENSORS), save("y", TENSORS | change)
    assert read_experts([first.path, second.path])[1] == second
    assert read_experts([second.path, first.path])[1] == first


def test_an_expert_with_another_name_stays_whole(save):
    renamed = save("y", {name.replace("b", "z"): tensor for name, tensor in TENSORS.items()})
    assert read_experts([save("x", TENSORS).path, renamed.path])[1] == renamed


@pytest.mark.parametrize(("in_another_order", "bytes_a_tensor"), [(True, 12), (False, 0)])
def test_memory_of_one_more_expert(save_in_order, in_another_order, bytes_a_tensor):
    tensors = {f"layer.{k:05d}.weight": torch.zeros(1) for k in range(2000)}
    others = backwards(tensors) if in_another_order else tensors
    paths = [save_in_order("first", tensors).path, *(save_in_order(f"{k}", others).path for k in range(5))]
    kept = []
    tracemalloc.start()
    try:
        for n in (2, 6):
            gc.collect()  # what other tests left is freed at a time of its own otherwise
            before, _ = tracemalloc.get_traced_memory()
            experts = read_experts(paths[:n])
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            kept.append(after - before)
            del experts
    finally:
        tracemalloc.stop()
    assert (kept[1] - kept[0]) / 4 == pytest.approx(bytes_a_tensor * 2000, abs=4000)


def test_faults_are_those_of_one_checkpoint(save, tmp_path):
    first = save("x", TENSORS)
    with pytest.raises(UsageError, match="no checkpoint at"):
        read_experts([first.path, tmp_path / "gone.safetensors"])
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_experts([first.path, tmp_path / "text.safetensors"])
