"""Parts of a checkpoint where a checkpoint is wanted."""

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint, read_experts
from glue_cli.foundation.errors import CheckpointError, UsageError


@pytest.fixture
def parts(tmp_path):
    files = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, name in zip(files, "ab", strict=True):
        save_file({name: torch.ones(2)}, file)
    return files


def test_parts_are_not_experts(parts):
    with pytest.raises(UsageError, match="are parts of one checkpoint") as caught:
        read_experts(parts)
    assert caught.value.hint == f"name the folder '{parts[0].parent}'"
    (parts[0].parent / "model.safetensors.index.json").touch()
    with pytest.raises(UsageError, match="are parts of one checkpoint") as caught:
        read_experts(parts)
    assert "model.safetensors.index.json" in caught.value.hint


def test_numbered_experts_are_no_parts(parts):
    """As of five folds: they have the same tensors."""
    for file in parts:
        save_file({"a": torch.ones(2)}, file)
    assert [expert.path for expert in read_experts(parts)] == parts


def test_a_folder_of_parts_without_their_index(parts):
    folder = parts[0].parent
    with pytest.raises(CheckpointError, match="and not their index 'model.safetensors.index.json'"):
        read_checkpoint(folder)
    (folder / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "names",
    [("consolidated.00.pth", "consolidated.01.pth"), ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt")],
)
def test_a_share_of_every_tensor_is_no_model(tmp_path, names):
    """Of Llama's larger models, and of tensor-parallel training."""
    for name in names:
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    for path in (tmp_path / names[0], tmp_path / names[1], tmp_path):
        with pytest.raises(CheckpointError, match="one of 2 shares of a model's tensors") as caught:
            read_checkpoint(path)
        assert len(caught.value.items) == 2
    (tmp_path / names[1]).unlink()
    assert read_checkpoint(tmp_path / names[0]).entries  # the smallest model has one


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint matches '.*\*.safetensors'"):
        read_checkpoint(tmp_path / "*.safetensors")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(CheckpointError, match="a.safetensors' is empty"):
        read_checkpoint(tmp_path / "a.safetensors")
