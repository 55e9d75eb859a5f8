"""Experts that are not all of the architecture of the first."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models import build_model
from glue_cli.models.recognise.recognise import recognise

CNN = {"num_classes": 3, "in_channels": 1, "width": 4}


@pytest.mark.parametrize(
    ("arch", "args", "prefix", "is_said"),
    [
        ("cnn", CNN, "", False),
        ("cnn", CNN, "module.", False),
        ("cnn", CNN | {"num_classes": 5}, "", False),
        ("cnn", CNN | {"width": 8}, "", True),
        ("resnet20", {"num_classes": 3, "in_channels": 1}, "", True),
    ],
)
def test_other_tensors_are_said(tmp_path, arch, args, prefix, is_said):
    save_file(build_model("cnn", CNN, seed=0).state_dict(), tmp_path / "one.safetensors")
    tensors = {prefix + name: tensor for name, tensor in build_model(arch, args, seed=1).state_dict().items()}
    save_file(tensors, tmp_path / "two.safetensors")
    experts = [read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    doubts = recognise(experts, tmp_path).doubts
    assert ["two.safetensors' has other tensors" in doubt for doubt in doubts] == [True] * is_said


def test_other_architectures_of_configurations_are_named(tmp_path):
    for name in ("BertForSequenceClassification", "GPT2LMHeadModel"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [name]}))
    one, other = (read_checkpoint(tmp_path / name) for name in ("BertForSequenceClassification", "GPT2LMHeadModel"))
    (doubt,) = recognise([one, one, other], tmp_path).doubts
    assert "is of transformers:GPT2LMHeadModel" in doubt and "glue check" in doubt
