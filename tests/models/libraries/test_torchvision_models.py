"""Models of torchvision."""

import sys

import pytest
import torch

from glue_cli.foundation.errors import SpecError
from glue_cli.models import build_model

pytestmark = pytest.mark.usefixtures("torchvision", "no_network")


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_a_model_is_torchvisions_own(torchvision, name):
    model = build_model(f"torchvision:{name}", {"num_classes": 7}, seed=3)
    own = torchvision.models.get_model(name, num_classes=7)
    assert [(n, t.shape) for n, t in model.state_dict().items()] == [(n, t.shape) for n, t in own.state_dict().items()]
    assert model.training
    own.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model.eval()(images)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, own.eval()(images))


def test_weights_are_a_pure_function_of_the_seed():
    before = torch.get_rng_state()
    first, again, other = (build_model("torchvision:resnet18", {}, seed=seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_segmentation_model_does_not_fetch_its_backbone():
    model = build_model("torchvision:lraspp_mobilenet_v3_large", {"num_classes": 3}, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_218_478


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SpecError) as caught:
        build_model("torchvision:mobilenet2", {}, seed=0)
    assert caught.value.message == "model.arch 'torchvision:mobilenet2': torchvision has no model 'mobilenet2'"
    assert caught.value.hint.startswith("did you mean 'mobilenet_v2'")
    with pytest.raises(SpecError) as caught:
        build_model("torchvision:qqqq", {}, seed=0)
    assert caught.value.hint.endswith("models, such as 'alexnet'")


def test_a_wrong_argument_is_named_with_the_nearest():
    with pytest.raises(SpecError) as caught:
        build_model("torchvision:resnet18", {"num_clases": 3}, seed=0)
    assert caught.value.message.startswith("model.args do not fit 'torchvision:resnet18': TypeError: ")
    assert "'num_clases'" in caught.value.message
    assert caught.value.hint.startswith("did you mean 'num_classes'? it takes ")


@pytest.mark.parametrize("name", ["weights", "weights_backbone"])
def test_weights_are_never_fetched(name):
    with pytest.raises(SpecError) as caught:
        build_model("torchvision:resnet18", {name: "IMAGENET1K_V1"}, seed=0)
    assert caught.value.message.startswith(f"model.args.{name}: 'torchvision:resnet18' starts from fresh weights")
    assert "experts.init" in caught.value.hint


def test_without_torchvision_the_error_says_what_to_install(missing):
    missing("torchvision")
    with pytest.raises(SpecError) as caught:
        build_model("torchvision:resnet18", {}, seed=0)
    assert caught.value.message == "model.arch 'torchvision:resnet18' needs torchvision, which is not installed"
    assert caught.value.hint == "pip install 'glue-cli[vision]'"


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "timm:resnet10t"])
def test_a_torchvision_for_another_torch_is_reported_with_the_way_to_mend_it(arch, tmp_path, monkeypatch, missing):
    for library in ("torchvision", "timm"):
        missing(library)
        monkeypatch.delitem(sys.modules, library)
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(SpecError) as caught:
        build_model(arch, {}, seed=0)
    assert caught.value.message == (
        f"model.arch '{arch}' imports torchvision, and the installed one was built for another torch than 2.13.0+cpu"
    )
    assert caught.value.hint == (
        "pip install --force-reinstall --no-deps torchvision --index-url https://download.pytorch.org/whl/cpu"
    )


def test_a_library_that_breaks_while_it_is_imported(tmp_path, monkeypatch, missing):
    missing("timm")
    monkeypatch.delitem(sys.modules, "timm")
    (tmp_path / "timm.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError) as caught:
        build_model("timm:resnet10t", {}, seed=0)
    assert caught.value.message == (
        "model.arch 'timm:resnet10t' cannot import timm: ValueError: numpy.dtype size changed"
    )
    assert caught.value.hint == "pip install -U 'glue-cli[timm]'"
