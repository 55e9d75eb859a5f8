"""Files with several sets of weights.

After Sense-X/UniFormer#87 and microsoft/GLIP#59 (model, model_ema), ultralytics/yolov5#2330 (model is None, ema is
there), XPixelGroup/BasicSR (params, params_ema), open-mmlab's state_dict with ema_state_dict, and Luffy03/VoCo#26.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.checkpoints.read import read_checkpoint, read_experts
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.checkpoints.weight_sets import check_any_has
from glue_cli.foundation.errors import CheckpointError, UsageError


def weights(value, **more):
    return {"w": torch.full((2, 3), float(value)), "b": torch.full((3,), float(value)), **more}


@pytest.fixture
def saved(tmp_path):
    def saved(content, name="x.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return saved


def value_of(checkpoint):
    return read_tensors(checkpoint)["w"][0, 0].item()


OPTIMIZER = torch.optim.AdamW(nn.Linear(2, 3).parameters()).state_dict()


@pytest.mark.parametrize(
    ("plain", "average"),
    [("model", "ema"), ("model", "model_ema"), ("params", "params_ema"), ("state_dict", "ema_state_dict")],
)
def test_a_model_and_its_average_are_told_and_chosen(saved, plain, average):
    path = saved({plain: weights(1), average: weights(2), "optimizer": OPTIMIZER, "epoch": 3})
    with pytest.raises(CheckpointError, match="holds several sets of weights") as caught:
        read_checkpoint(path)
    assert caught.value.items == (f"{plain}: 2 tensors", f"{average}: 2 tensors")
    assert f"--weights {average}" in caught.value.hint
    for name, value in ((plain, 1), (average, 2)):
        found = read_checkpoint(path, name)
        assert found.weights == name and value_of(found) == value
    with pytest.raises(UsageError, match="--weights teacher: .*has no such set") as caught:
        read_checkpoint(path, "teacher")
    assert len(caught.value.items) == 2


@pytest.mark.parametrize(
    ("content", "value", "name"),
    [
        ({"model": None, "ema": weights(2), "updates": 9}, 2, None),
        ({"ema": {"decay": 0.999, "state_dict": weights(2)}, "optimizer": OPTIMIZER}, 2, None),
        ({"network_weights": weights(1), "optimizer_state": OPTIMIZER, "current_epoch": 5}, 1, None),
        ({"student": weights(3), "args": {"lr": 0.1}}, 3, None),
        ({"state_dict": weights(1), "loss": torch.tensor(0.5), "rng": {"cpu": torch.get_rng_state()}}, 1, None),
        ({"model": weights(1), "class_weights": torch.ones(2), "criterion": {"weight": torch.ones(2)}}, 1, None),
        ({"model": weights(1), "criterion": {"weight": torch.ones(2)}}, 1, "model"),
    ],
)
def test_convention_decides_where_it_can(saved, content, value, name):
    found = read_checkpoint(saved(content))
    assert value_of(found) == value and found.weights == name


@pytest.mark.parametrize("names", [("generator", "discriminator"), ("state_dict", "model"), ("net_G", "net_D")])
def test_convention_does_not_decide_between_equals(saved, names):
    path = saved({name: weights(number) for number, name in enumerate(names)})
    with pytest.raises(CheckpointError, match="several sets"):
        read_checkpoint(path)
    assert value_of(read_checkpoint(path, names[1])) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": weights(1), "ema_shadow": weights(2)}, "ema_shadow: 2 tensors"),
        ({"model": weights(1), "head": {"weight": torch.ones(2, 3)}}, "head: 1 tensor"),  # of ArcFace
        ({"net": weights(1), "disc": weights(2), "optimizer": OPTIMIZER}, "disc: 2 tensors"),
    ],
)
def test_a_set_with_a_usual_name_is_not_taken_where_another_may_be_meant(saved, content, said):
    path, (usual, *_) = saved(content), content
    with pytest.raises(CheckpointError, match="several sets of weights") as caught:
        read_checkpoint(path)
    assert said in caught.value.items and "--weights" in caught.value.hint
    found = read_checkpoint(path, usual)
    assert value_of(found) == 1 and found.weights == usual and found.beside == ()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"norm_mean": torch.ones(3), "norm_std": torch.ones(3), "epoch": 3}, ("norm_mean", "norm_std")),
        ({"ema": {"decay": 0.9, "shadow_params": [torch.ones(2, 3)]}}, ("ema",)),
        ({"normalizer": {"mean": torch.ones(3)}, "optimizer": OPTIMIZER}, ("normalizer",)),
        ({"hyper_parameters": {"class_weights": torch.ones(2)}, "best_prec1": torch.ones(1)}, ()),
        ({"frozen_param_fragments": {"a.weight": torch.ones(2)}, "train_acc": torch.ones(9)}, ()),
        ({"criterion": {"weight": torch.ones(2)}, "args": {"pos_weight": torch.ones(2)}}, ()),
    ],
)
def test_what_is_left_out_of_a_training_checkpoint_is_known(saved, more, told):
    found = read_checkpoint(saved({"model": weights(1), **more}))
    assert value_of(found) == 1 and found.beside == told


def test_an_average_in_a_set_of_several_is_named_by_both(saved):
    """Of lucidrains/ema-pytorch: the trainer saves the model, and what keeps its average with a copy of the model."""
    inside = {
        f"{name}.{key}": tensor
        for name, value in (("online_model", 1), ("ema_model", 2))
        for key, tensor in weights(value).items()
    }
    path = saved({"model": weights(5), "ema": {**inside, "initted": torch.tensor(True)}})
    with pytest.raises(CheckpointError, match="several sets") as caught:
        read_checkpoint(path, "ema")
    assert caught.value.items == ("ema.online_model: 2 tensors", "ema.ema_model: 2 tensors")
    assert "--weights ema.ema_model" in caught.value.hint and "--weights ema.all" in caught.value.hint
    for name, value in (("model", 5), ("ema.online_model", 1), ("ema.ema_model", 2)):
        found = read_checkpoint(path, name)
        assert found.weights == name and value_of(found) == value
    assert read_checkpoint(path, "ema.all").entries.keys() == {*inside, "initted"}
    with pytest.raises(UsageError, match="--weights model.ema_model: the set 'model' .* has no sets in it") as caught:
        read_checkpoint(path, "model.ema_model")
    assert "--weights model" in caught.value.hint
    with pytest.raises(UsageError, match="has no such set"):
        read_checkpoint(path, "ema.other")


def test_the_state_of_an_optimiser_is_no_model(saved):
    """With one parameter it looks like a state dict with a set inside."""
    parameter = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(CheckpointError, match="the state of an optimiser"):
        read_checkpoint(saved(optimizer.state_dict()))


def test_sets_of_a_safetensors_file_are_told_by_their_prefix(tmp_path):
    path = tmp_path / "x.safetensors"
    sets = {"model": weights(1), "ema": weights(2)}
    tensors = {f"{name}.{key}": t for name, own in sets.items() for key, t in own.items()}
    save_file(tensors | {"step": torch.tensor(7)}, path)
    with pytest.raises(CheckpointError, match="several sets") as caught:
        read_checkpoint(path)
    assert caught.value.items == ("model: 2 tensors", "ema: 2 tensors")
    found = read_checkpoint(path, "ema")
    assert found.entries.keys() == {"w", "b"} and found.weights == "ema" and value_of(found) == 2
    assert "--weights all" in caught.value.hint
    assert read_checkpoint(path, "all").entries.keys() == {*tensors, "step"}


def test_an_average_by_torch_within_a_module_is_a_set(saved):
    """Of a LightningModule with self.model and self.ema = AveragedModel(self.model)."""
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 3)).state_dict()
    model = {f"model.{name}": t for name, t in nn.Linear(2, 3).state_dict().items()}
    path = saved({"state_dict": {**model, **{f"ema.{name}": t for name, t in average.items()}}, "epoch": 1})
    with pytest.raises(CheckpointError, match="several sets"):
        read_checkpoint(path)
    found = read_tensors(read_checkpoint(path, "ema"))
    assert found.keys() == {"weight", "bias"} and torch.equal(found["weight"], average["module.weight"])


@pytest.mark.parametrize(
    "tensors",
    [
        {"teacher.w": torch.ones(2, 3), "teacher.b": torch.ones(3)},  # alone
        {"teacher.w": torch.ones(2, 3), "student.v": torch.ones(5)},  # another network
        {"ema.w": torch.ones(2), "model.w": torch.ones(3)},  # other shapes
        {"model.w": torch.ones(2), "module.w": torch.ones(2)},  # neither is an average
        {"ema": torch.ones(2), "model": torch.ones(2)},
        {"teacher.w": torch.ones(2), "student.w": torch.ones(2)},  # parts of one module, as in distillation
    ],
)
def test_parts_of_one_network_are_no_sets(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert found.entries.keys() == tensors.keys() and found.weights is None


def test_a_choice_counts_for_the_experts_that_have_one(saved):
    several = saved({"model": weights(1), "ema": weights(2)})
    plain = saved(weights(5), "plain.pt")
    first, second = experts = read_experts([several, plain], ["ema", "ema"])
    check_any_has(experts, "ema")
    assert (first.weights, second.weights) == ("ema", None) and (value_of(first), value_of(second)) == (2, 5)
    with pytest.raises(UsageError, match="--weights ema: none of these files"):
        check_any_has([second, second], "ema")


@pytest.mark.parametrize("name", ["ema", "model_ema", "params_ema"])
def test_a_tensor_of_an_averages_name_is_a_tensor(saved, name):
    content = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2), name: torch.ones(3)}
    assert read_checkpoint(saved(content)).entries.keys() == content.keys()
