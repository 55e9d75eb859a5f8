"""What of a model is its backbone."""

import pytest
from torch import nn

from glue_cli.models import build_model
from glue_cli.models.backbone import backbone_of


def heads_of(model):
    is_backbone = backbone_of(model)
    return {name for name in model.state_dict() if not is_backbone(name)}


@pytest.mark.parametrize("arch", ["cnn", "resnet20", "mobilenet_v2", "vit"])
def test_the_last_linear_layer_is_the_head_of_glues_own_models(arch):
    head, *_ = [
        name
        for name, module in reversed([*build_model(arch, {}, seed=0).named_modules()])
        if isinstance(module, nn.Linear)
    ]
    assert heads_of(build_model(arch, {}, seed=0)) == {f"{head}.weight", f"{head}.bias"}


def test_a_model_without_a_linear_layer_is_all_backbone():
    assert heads_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))) == set()


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet10t", {"fc.weight", "fc.bias"}),
        ("vit_tiny_patch16_224", {"head.weight", "head.bias"}),
        (
            "deit_tiny_distilled_patch16_224",
            {f"{head}.{leaf}" for head in ("head", "head_dist") for leaf in ("weight", "bias")},
        ),
    ],
)
def test_timm_says_what_its_heads_are(name, heads):
    pytest.importorskip("timm")
    assert heads_of(build_model(f"timm:{name}", {}, seed=0)) == heads


@pytest.mark.usefixtures("torchvision")
def test_transformers_says_what_its_backbones_are():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    config = transformers.BertConfig(**sizes)
    assert heads_of(transformers.BertForSequenceClassification(config)) == {"classifier.weight", "classifier.bias"}
    assert heads_of(transformers.BertModel(config)) == set()
