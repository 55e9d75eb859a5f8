"""Which tensors of a checkpoint are which of a model's."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models.names import list_differences, match_names, match_pretrained_names, tensor_fits


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


class Headed(nn.Module):
    base_model_prefix = "base"

    def __init__(self):
        super().__init__()
        self.base = nn.ModuleDict({"dense": nn.Linear(3, 3), "LayerNorm": nn.LayerNorm(3)})
        self.head = nn.Linear(3, 2)


@pytest.fixture
def checkpoint_of(tmp_path):
    def write(**tensors):
        path = tmp_path / "checkpoint.safetensors"
        save_file({name.replace("/", "."): torch.zeros(shape) for name, shape in tensors.items()}, path)
        return read_checkpoint(path)

    return write


def differences(model, checkpoint):
    return list_differences(model, checkpoint, match_names(model, checkpoint))


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_one_name_of_a_tied_tensor_stands_for_all(checkpoint_of, name):
    checkpoint = checkpoint_of(**{name: (5, 3)})
    assert match_names(Tied(), checkpoint) == {"embedding.weight": name, "head.weight": name}
    assert differences(Tied(), checkpoint) == []


def test_both_names_of_a_tied_tensor_keep_their_own(checkpoint_of):
    checkpoint = checkpoint_of(**{"embedding.weight": (5, 3), "head.weight": (5, 3)})
    assert match_names(Tied(), checkpoint) == {name: name for name in checkpoint.entries}


def test_equal_tensors_are_not_tied(checkpoint_of):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model.load_state_dict({name: torch.zeros(2, 2) for name in model.state_dict()})
    assert differences(model, checkpoint_of(**{"0.weight": (2, 2)})) == ["'1.weight' is missing"]


def test_a_relative_is_matched_through_its_prefix_and_old_names(checkpoint_of):
    bare = checkpoint_of(**{"dense.weight": (3, 3), "LayerNorm.gamma": (3,), "LayerNorm.beta": (3,), "pooler": (3,)})
    assert match_pretrained_names(Headed(), bare) == {
        "base.dense.weight": "dense.weight",
        "base.LayerNorm.weight": "LayerNorm.gamma",
        "base.LayerNorm.bias": "LayerNorm.beta",
    }
    assert match_names(Headed(), bare) == {}  # an expert has to have the model's own names
    backbone = Headed().base
    backbone.base_model_prefix = "base"
    headed = checkpoint_of(**{"base.dense.bias": (3,), "head.bias": (2,)})
    assert match_pretrained_names(backbone, headed) == {"dense.bias": "base.dense.bias"}


def test_without_a_prefix_only_equal_names_match(checkpoint_of):
    checkpoint = checkpoint_of(**{"0.weight": (2, 2), "model.0.bias": (2,)})
    assert match_pretrained_names(nn.Sequential(nn.Linear(2, 2)), checkpoint) == {"0.weight": "0.weight"}


def test_what_fits_a_tensor(checkpoint_of):
    entry = checkpoint_of(x=(2, 3)).entries["x"]
    assert tensor_fits(torch.zeros(2, 3), entry) and tensor_fits(torch.zeros(2, 3, dtype=torch.bfloat16), entry)
    assert not tensor_fits(torch.zeros(3, 2), entry) and not tensor_fits(torch.zeros(2, 3, dtype=torch.int64), entry)


def test_differences_begin_with_the_nearest_names(checkpoint_of):
    model = nn.ModuleDict({"stem": nn.Conv2d(1, 2, 3), "norm": nn.LayerNorm(2), "fc": nn.Linear(2, 5)})
    checkpoint = checkpoint_of(
        **{
            "module.stem.weight": (2, 1, 3, 3),
            "module.stem.bias": (2,),
            "norm.weight": (4,),
            "norm.bias": (2,),
            "head.weight": (7, 2),
            "extra": (1, 1, 1),
        }
    )
    assert differences(model, checkpoint) == [
        "'norm.weight' is [4], the model has [2]",
        "'fc.weight' is missing; the checkpoint has 'head.weight'",
        "'stem.weight' is missing; the checkpoint has 'module.stem.weight'",
        "'stem.bias' is missing; the checkpoint has 'module.stem.bias'",
        "'fc.bias' is missing",
        "'extra' is not in the model",
    ]


def test_of_thousands_of_names_all_are_listed_and_some_compared(checkpoint_of):
    ours = nn.ModuleList(nn.Linear(1, 1) for _ in range(1000))
    checkpoint = checkpoint_of(**{f"layers.{i}.weight": (1, 1) for i in range(2000)})
    lines = differences(ours, checkpoint)
    compared = [line for line in lines if "; the checkpoint has" in line]
    assert 0 < len(compared) <= 200
    assert len(lines) == 2000 + 2000 - len(compared)
