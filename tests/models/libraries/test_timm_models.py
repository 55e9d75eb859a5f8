"""Models of timm."""

import pytest
import torch

from glue_cli.foundation.errors import SpecError
from glue_cli.models import build_model

pytestmark = pytest.mark.usefixtures("torchvision", "no_network")


@pytest.mark.parametrize(
    ("name", "args"),
    [("resnet10t", {}), ("resnet10t.c3_in1k", {}), ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2})],
)
def test_a_model_is_timms_own(name, args):
    import timm

    model = build_model(f"timm:{name}", {"num_classes": 7, **args}, seed=3)
    own = timm.create_model(name, num_classes=7, **args)
    assert model.training
    own.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model.eval()(images)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, own.eval()(images))


def test_weights_are_a_pure_function_of_the_seed():
    before = torch.get_rng_state()
    args = {"img_size": 32, "depth": 1}
    first, again, other = (
        build_model("timm:vit_tiny_patch16_224", args, seed=seed).blocks[0].attn.qkv.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "near"), [("resnet10", "resnet10t"), ("resnet10t_c3", "resnet10t")])
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(SpecError) as caught:
        build_model(f"timm:{name}", {}, seed=0)
    assert caught.value.message == f"model.arch 'timm:{name}': timm has no model '{name}'"
    assert f"'{near}'" in caught.value.hint


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet10t", "hf_hub:timm/resnet10t", "local-dir:."])
def test_a_name_that_means_the_hub_or_a_folder_is_refused(name):
    with pytest.raises(SpecError, match="timm has no model"):
        build_model(f"timm:{name}", {}, seed=0)


def test_a_wrong_argument_is_named_with_the_nearest():
    with pytest.raises(SpecError) as caught:
        build_model("timm:vit_tiny_patch16_224", {"image_size": 32}, seed=0)
    assert "'image_size'" in caught.value.message
    assert caught.value.hint.startswith("did you mean 'img_size'? it takes ")


def test_a_wrong_value_is_refused():
    with pytest.raises(SpecError, match="model.args do not fit 'timm:resnet10t': TypeError: "):
        build_model("timm:resnet10t", {"num_classes": "ten"}, seed=0)


@pytest.mark.parametrize("args", [{"pretrained": True}, {"checkpoint_path": "x.bin"}])
def test_weights_are_never_fetched_nor_unpickled(args):
    with pytest.raises(SpecError, match=f"model.args.{next(iter(args))}: .* starts from fresh weights"):
        build_model("timm:resnet10t", args, seed=0)
    assert build_model("timm:resnet10t", {"pretrained": False}, seed=0).training  # as glue does anyway


def test_without_timm_the_error_says_what_to_install(missing):
    missing("timm")
    with pytest.raises(SpecError) as caught:
        build_model("timm:resnet10t", {}, seed=0)
    assert caught.value.message == "model.arch 'timm:resnet10t' needs timm, which is not installed"
    assert caught.value.hint == "pip install 'glue-cli[timm]'"
