"""Which tensors of a checkpoint are which of a model's."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models.matching import list_differences, match_names, tensor_fits


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def checkpoint_of(tmp_path):
    def write(**tensors):
        path = tmp_path / "checkpoint.safetensors"
        save_file({name.replace("/", "."): torch.zeros(shape) for name, shape in tensors.items()}, path)
        return read_checkpoint(path)

    return write


def names_of(model, checkpoint):
    naming = match_names(model, checkpoint)
    assert all(source.make is None for source in naming.sources.values())
    return {name: source.names[0] for name, source in naming.sources.items()}


def differences(model, checkpoint):
    return list_differences(model, checkpoint, match_names(model, checkpoint))


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_one_name_of_a_tied_tensor_stands_for_all(checkpoint_of, name):
    checkpoint = checkpoint_of(**{name: (5, 3)})
    assert names_of(Tied(), checkpoint) == {"embedding.weight": name, "head.weight": name}
    assert differences(Tied(), checkpoint) == []


def test_both_names_of_a_tied_tensor_keep_their_own(checkpoint_of):
    checkpoint = checkpoint_of(**{"embedding.weight": (5, 3), "head.weight": (5, 3)})
    assert names_of(Tied(), checkpoint) == {name: name for name in checkpoint.entries}


def test_equal_tensors_are_not_tied(checkpoint_of):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model.load_state_dict({name: torch.zeros(2, 2) for name in model.state_dict()})
    assert differences(model, checkpoint_of(**{"0.weight": (2, 2)})) == ["'1.weight' is missing"]


@pytest.mark.parametrize(
    "spelling", ["module.{}", "_orig_mod.{}", "module._orig_mod.module.{}", "model.{}", "net.model._orig_mod.{}"]
)
def test_what_wrappers_put_before_names_is_passed_over(checkpoint_of, spelling):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    checkpoint = checkpoint_of(**{spelling.format(n): tensor.shape for n, tensor in model.state_dict().items()})
    assert names_of(model, checkpoint) == {name: spelling.format(name) for name in model.state_dict()}
    assert differences(model, checkpoint) == []


def test_a_lightning_modules_own_tensors_are_left_over(checkpoint_of):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    checkpoint = checkpoint_of(**{"model.0.weight": (2, 2), "model.1.weight": (2, 2), "scale.weight": (5,)})
    assert differences(model, checkpoint) == ["'scale.weight' is not in the model"]


def test_of_two_prefixes_that_fit_alike_none_is_taken(checkpoint_of):
    checkpoint = checkpoint_of(**{"student.0.weight": (2, 2), "teacher.0.weight": (2, 2)})
    assert names_of(nn.Sequential(nn.Linear(2, 2)), checkpoint) == {}


def test_a_part_of_the_model_alone(checkpoint_of):
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "decoder": nn.Linear(2, 9)})
    wanted = {name: tensor.shape for name, tensor in model["encoder"].state_dict().items()}
    checkpoint = checkpoint_of(**{f"module.{name}": shape for name, shape in wanted.items()})
    assert names_of(model, checkpoint) == {f"encoder.{name}": f"module.{name}" for name in wanted}


def test_both_spellings_of_a_parametrised_weight_load(checkpoint_of):
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    checkpoint = checkpoint_of(
        **{"0.weight_g": (2, 1), "0.weight_v": (2, 3), "0.bias": (2,), "1.weight": (2, 2), "1.bias": (2,)}
    )
    found = names_of(new, checkpoint)
    assert found["0.parametrizations.weight.original0"] == "0.weight_g"
    assert found["0.parametrizations.weight.original1"] == "0.weight_v"
    assert differences(new, checkpoint) == []


def test_the_counters_of_batchnorm_may_be_missing(checkpoint_of):
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    del shapes["1.num_batches_tracked"]
    assert differences(model, checkpoint_of(**shapes)) == []
    del shapes["1.running_mean"]
    assert differences(model, checkpoint_of(**shapes)) == ["'1.running_mean' is missing"]


def test_what_fits_a_tensor(checkpoint_of):
    entry = checkpoint_of(x=(2, 3)).entries["x"]
    assert tensor_fits(torch.zeros(2, 3), entry) and tensor_fits(torch.zeros(2, 3, dtype=torch.bfloat16), entry)
    assert not tensor_fits(torch.zeros(3, 2), entry) and not tensor_fits(torch.zeros(2, 3, dtype=torch.int64), entry)


def test_differences_begin_with_the_nearest_names(checkpoint_of):
    model = nn.ModuleDict({"stem": nn.Conv2d(1, 2, 3), "norm": nn.LayerNorm(2), "fc": nn.Linear(2, 5)})
    checkpoint = checkpoint_of(
        **{
            "modules.stem.weight": (2, 1, 3, 3),
            "modules.stem.bias": (2,),
            "norm.weight": (4,),
            "norm.bias": (2,),
            "head.weight": (7, 2),
            "extra": (1, 1, 1),
        }
    )
    assert differences(model, checkpoint) == [
        "'norm.weight' is [4], the model has [2]",
        "'fc.weight' is missing; the checkpoint has 'head.weight'",
        "'stem.weight' is missing; the checkpoint has 'modules.stem.weight'",
        "'stem.bias' is missing; the checkpoint has 'modules.stem.bias'",
        "'fc.bias' is missing",
        "'extra' is not in the model",
    ]


def test_of_thousands_of_names_all_are_listed_and_some_compared(checkpoint_of):
    ours = nn.ModuleList(nn.Linear(1, 1) for _ in range(1000))
    checkpoint = checkpoint_of(**{f"{i}.weights": (1, 1) for i in range(2000)})
    lines = differences(ours, checkpoint)
    compared = [line for line in lines if "; the checkpoint has" in line]
    assert 0 < len(compared) <= 200
    assert len(lines) == 2000 + 2000 - len(compared)


@pytest.mark.parametrize("prefix", ["", "model/", "module/"])
def test_the_weights_of_a_loss_beside_the_model_are_passed_over(checkpoint_of, prefix):
    tensors = {f"{prefix}weight": (2, 3), f"{prefix}bias": (2,)}
    beside = {"criterion/weight": (2,), "loss_fn/pos_weight": (1,), "n_averaged": (), "train_metrics/sum": (1,)}
    assert differences(nn.Linear(3, 2), checkpoint_of(**tensors, **beside)) == []
    assert differences(nn.Linear(3, 2), checkpoint_of(**tensors, **{f"{prefix}scale": (2,)})) != []


def test_a_model_with_a_loss_of_its_own_needs_it(checkpoint_of):
    model = nn.ModuleDict({"criterion": nn.Linear(3, 2), "net": nn.Linear(3, 2)})
    assert differences(model, checkpoint_of(**{"net/weight": (2, 3), "net/bias": (2,)})) != []
    whole = {
        f"{name}/{leaf}": shape
        for name in ("net", "criterion")
        for leaf, shape in (("weight", (2, 3)), ("bias", (2,)))
    }
    assert names_of(model, checkpoint_of(**whole)).keys() == model.state_dict().keys()
