"""One file, shards with an index, a Hugging Face folder: names, contents, and what is left of an earlier blend."""

import json

import pytest
import torch
from destinations import destination_of

from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError

TENSORS = {
    "a": torch.arange(100.0),  # 400 B
    "b": torch.arange(50.0),
    "c.num_batches_tracked": torch.tensor(7),
    "big": torch.arange(1000.0),
    "half": torch.ones(10, dtype=torch.bfloat16),
    "whole": torch.arange(3),
}


def twice(tensors):
    return {name: t * 2 if t.is_floating_point() else t for name, t in tensors.items()}


@pytest.fixture
def pair(save):
    return [save("x", TENSORS), save("y", twice(TENSORS))]


@pytest.fixture
def folders(save_shards):
    experts = [save_shards("first", TENSORS), save_shards("second", twice(TENSORS))]
    (experts[0].path / "config.json").write_text('{"model_type": "first"}')
    (experts[0].path / "tokenizer.json").write_text("{}")
    (experts[0].path / "README.md").write_text("not a part of the model")
    return experts


def blend_to(output, experts, **options):
    destination = destination_of(output, experts, **options)
    blend_files(experts, [[0.5, 0.5]], destination, lambda hashes: {"of": list(hashes)})
    return destination


def assert_blended(path):
    found = read_tensors(read_checkpoint(path))
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        wanted = TENSORS[name] * 1.5 if tensor.is_floating_point() else TENSORS[name]
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name


def test_one_file(pair, tmp_path):
    destination = blend_to(tmp_path / "out.safetensors", pair)
    assert destination.paths == [destination.result] == [tmp_path / "out.safetensors"]
    assert_blended(destination.result)


@pytest.mark.parametrize("name", ["out.safetensors", "out.safetensors.index.json"])
def test_shards_are_no_larger_than_asked_and_read_back_whole(pair, tmp_path, name):
    destination = blend_to(tmp_path / name, pair, max_shard_bytes=600)
    assert destination.result == tmp_path / "out.safetensors.index.json"
    assert [file.name for file in destination.files] == [f"out-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    sizes = [read_checkpoint(file).n_bytes for file in destination.files]
    assert sum(sizes) == sum(t.numel() * t.element_size() for t in TENSORS.values())
    assert [size for size in sizes if size > 600] == [4000]  # one tensor is larger than a shard
    index = json.loads(destination.result.read_text())
    assert index["metadata"] == {"total_size": sum(sizes)} and list(index["weight_map"]) == sorted(TENSORS)
    assert_blended(destination.result)


def test_an_index_without_a_size_has_one_shard(pair, tmp_path):
    destination = blend_to(tmp_path / "out.safetensors.index.json", pair)
    assert [file.name for file in destination.files] == ["out-00001-of-00001.safetensors"]
    assert_blended(destination.result)


def test_every_shard_has_the_metadata(pair, tmp_path):
    destination = blend_to(tmp_path / "out.safetensors", pair, max_shard_bytes=600)
    said = [read_checkpoint(file).glue for file in destination.files]
    assert all(one == said[0] for one in said) and len(said[0]["of"]) == 2


@pytest.mark.parametrize("size", [None, 600])
def test_folders_give_a_folder_with_configuration_and_tokenizer(folders, tmp_path, size):
    destination = blend_to(tmp_path / "prior", folders, max_shard_bytes=size)
    assert_blended(tmp_path / "prior")
    assert (tmp_path / "prior" / "config.json").read_text() == '{"model_type": "first"}'
    names = {path.name for path in (tmp_path / "prior").iterdir()}
    assert {"config.json", "tokenizer.json"} < names and "README.md" not in names
    assert names == {path.name for path in destination.paths}


def test_folders_can_give_a_file(folders, tmp_path):
    blend_to(tmp_path / "out.safetensors", folders)
    assert_blended(tmp_path / "out.safetensors")


def test_nothing_of_an_earlier_blend_is_read_in_place_of_this_one(folders, tmp_path):
    blend_to(tmp_path / "prior", folders, max_shard_bytes=600)
    blend_to(tmp_path / "prior", folders)
    weights = [path.name for path in (tmp_path / "prior").iterdir() if "model" in path.name]
    assert weights == ["model.safetensors"]
    assert_blended(tmp_path / "prior")


def test_other_files_in_the_folder_stay(folders, tmp_path):
    others = [
        "model_best_backup.safetensors",
        "model-b.safetensors",
        "model.fp16.safetensors",
        "model-1-of-2.safetensors",
    ]
    (tmp_path / "prior").mkdir()
    for name in others:
        (tmp_path / "prior" / name).write_text("somebody's")
    blend_to(tmp_path / "prior", folders, max_shard_bytes=600)
    blend_to(tmp_path / "prior", folders)
    assert all((tmp_path / "prior" / name).read_text() == "somebody's" for name in others)
    assert {path.name for path in (tmp_path / "prior").iterdir()} >= {"model.safetensors", *others}


def test_a_failed_folder_leaves_nothing(folders, save_shards, tmp_path):
    broken = save_shards("broken", {**TENSORS, "big": torch.full((1000,), torch.nan)})
    with pytest.raises(CheckpointError, match="'big' has nan"):
        blend_to(tmp_path / "prior", [folders[0], broken], max_shard_bytes=600)
    assert not (tmp_path / "prior").exists()
