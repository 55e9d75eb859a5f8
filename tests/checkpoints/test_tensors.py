import pytest
import torch
from safetensors.torch import load_file, safe_open

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import TORCH_DTYPES, read_tensors, write_checkpoint
from glue_cli.foundation.errors import CheckpointError


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_round_trip_in_every_dtype(tmp_path, dtype):
    raw = torch.randint(0, 2, (3, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tensors = {"w": raw.view(dtype), "scalar": raw.view(dtype)[0, 0], "empty": raw.view(dtype)[:0]}
    write_checkpoint(tmp_path / "x.safetensors", tensors, {"kind": "expert"})
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.glue == {"kind": "expert"}
    for found in (read_tensors(checkpoint), load_file(tmp_path / "x.safetensors")):
        for name, tensor in tensors.items():
            assert found[name].dtype == dtype and found[name].shape == tensor.shape
            assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_tied_tensors_and_strange_strides_are_written_in_full(tmp_path):
    weight = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {
        "embed": weight,
        "head": weight,
        "part": weight[..., 1:3],
        "turned": weight.transpose(0, 3),
        "last": weight.to(memory_format=torch.channels_last),
        "learned": torch.nn.Parameter(weight * 2),
    }
    write_checkpoint(tmp_path / "x.safetensors", tensors, {})
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.bfloat16)}
    write_checkpoint(tmp_path / "x.safetensors", tensors, {"b": 1, "a": 2})
    write_checkpoint(tmp_path / "y.safetensors", dict(reversed(tensors.items())), {"a": 2, "b": 1})
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "glue": '{"a": 2, "b": 1}'}


def test_a_file_that_changed_or_went_since_its_header_was_read(save):
    checkpoint = save("x", {"w": torch.zeros(3)})
    save("x", {"w": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=r"x\.safetensors' changed while it was read"):
        read_tensors(checkpoint)
    checkpoint.files[0].unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors' cannot be read: No such file"):
        read_tensors(checkpoint)
