"""Architectures by their tensors alone."""

import pytest
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.models import build_model
from glue_cli.models.recognise.tensor_shapes import by_tensors


def recognised(folder, arch, args, change=lambda tensors: None):
    tensors = dict(build_model(arch, args, seed=0).state_dict())
    change(tensors)
    save_file(tensors, folder / "net.safetensors")
    return by_tensors(read_checkpoint(folder / "net.safetensors"))


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("cnn", {"num_classes": 3, "in_channels": 2, "width": 5}),
        ("resnet20", {"num_classes": 7, "in_channels": 1}),
        ("mobilenet_v2", {"num_classes": 4, "in_channels": 1, "width_mult": 0.5}),
        ("mobilenet_v2", {"num_classes": 4, "in_channels": 3, "width_mult": 1.4}),
        (
            "vit",
            {
                "num_classes": 5,
                "image_size": 24,
                "patch": 4,
                "depth": 3,
                "width": 12,
                "mlp_ratio": 2,
                "in_channels": 1,
            },
        ),
    ],
)
def test_glues_own_with_all_arguments_that_shapes_tell(tmp_path, arch, args):
    found = recognised(tmp_path, arch, args)
    assert (found.arch, dict(found.args)) == (arch, args)
    assert found.n_outputs == args["num_classes"]


@pytest.mark.parametrize(("arch", "key"), [("vit", "heads"), ("mobilenet_v2", "stem_stride")])
def test_what_shapes_do_not_tell_is_said(tmp_path, arch, key):
    found = recognised(tmp_path, arch, {"num_classes": 2})
    assert any(f"model.args.{key}" in doubt for doubt in found.doubts)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"num_classes": 7}),
        ("squeezenet1_1", {"num_classes": 1000}),
        ("efficientnet_b0", {"num_classes": 2}),
        ("mobilenet_v3_small", {"num_classes": 12}),
        ("regnet_y_400mf", {"num_classes": 3}),
    ],
)
def test_torchvisions(tmp_path, name, args):
    found = recognised(tmp_path, f"torchvision:{name}", args)
    assert found is not None
    assert (found.arch, dict(found.args)) == (f"torchvision:{name}", args)


def test_a_tensor_more_or_of_another_shape_is_another_architecture(tmp_path):
    def add(tensors):
        tensors["more"] = tensors["fc.bias"].clone()

    def widen(tensors):
        tensors["bn1.weight"] = tensors["bn1.weight"].repeat(2)

    for change in (add, widen, lambda tensors: tensors.pop("layer3.2.bn2.bias")):
        assert recognised(tmp_path, "resnet20", {}, change) is None


def test_without_torchvision_nothing_is_recognised_as_its(tmp_path, missing, request):
    request.getfixturevalue("torchvision")
    from torchvision.models import shufflenet_v2_x0_5

    save_file(shufflenet_v2_x0_5(weights=None).state_dict(), tmp_path / "net.safetensors")
    missing("torchvision")
    assert by_tensors(read_checkpoint(tmp_path / "net.safetensors")) is None
