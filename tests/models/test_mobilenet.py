"""MobileNetV2 against torchvision's.

`mobilenet_v2_torchvision.txt` was written by torchvision 0.28.0: a line for each entry of
`torchvision.models.mobilenet_v2().state_dict()`, in its order. So were the parameter counts and logits.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import SpecError
from glue_cli.models import build_model
from glue_cli.models.mobilenet import InvertedResidual, _round_channels, mobilenet_v2


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_state_dict_is_torchvisions():
    listed = (Path(__file__).parent / "mobilenet_v2_torchvision.txt").read_text().splitlines()
    ours = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in mobilenet_v2().state_dict().items()
    ]
    assert len(listed) == 314
    assert ours == listed


def test_logits_are_torchvisions():
    """Weights from a formula, in float64; `wanted` is torchvision's answer for the same tensors and image."""
    model = mobilenet_v2(num_classes=4, width_mult=0.35).double().eval()
    with torch.no_grad():
        for place, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + place).view(tensor.shape)
                tensor.copy_(wave * (8 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 1 + wave / 2)
        logits = model(3 * torch.sin(torch.arange(3 * 32 * 32, dtype=torch.float64)).view(1, 3, 32, 32))
    wanted = torch.tensor([[12.289928215, -27.7521639317, 34.9309398285, -24.05888136]], dtype=torch.float64)
    torch.testing.assert_close(logits, wanted, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("width_mult", "count"), [(0.35, 1_677_128), (0.5, 1_968_680), (1.0, 3_504_872), (1.4, 6_108_776)]
)
def test_parameter_count_is_torchvisions(width_mult, count):
    assert n_parameters(mobilenet_v2(width_mult=width_mult)) == count


@pytest.mark.parametrize(
    ("channels", "rounded"), [(1, 8), (8, 8), (11.2, 16), (12, 16), (16, 16), (33.6, 32), (44.8, 48), (134.4, 136)]
)
def test_channels_are_rounded_to_eights_and_lose_at_most_a_tenth(channels, rounded):
    assert _round_channels(channels) == rounded


@pytest.mark.parametrize(("stem_stride", "size"), [(2, 2), (1, 4)])
def test_stem_stride_sets_the_resolution(stem_stride, size):
    model = mobilenet_v2(num_classes=2, stem_stride=stem_stride).eval()
    with torch.no_grad():
        assert model.features(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, size, size)


@pytest.mark.parametrize(("n_in", "n_out", "stride", "added"), [(8, 8, 1, True), (8, 16, 1, False), (8, 8, 2, False)])
def test_shortcut_only_where_the_shape_stays(n_in, n_out, stride, added):
    block = InvertedResidual(n_in, n_out, stride=stride, expansion=6).eval()
    nn.init.zeros_(block.conv[-1].weight)  # leaves the shortcut alone
    x = torch.randn(2, n_in, 6, 6)
    assert torch.equal(block(x), x) if added else not block(x).any()


def test_initialisation_is_torchvisions():
    model = build_model("mobilenet_v2", {}, seed=0)
    pointwise, depthwise = model.features[17].conv[0][0], model.features[17].conv[1][0]
    assert pointwise.weight.shape == (960, 160, 1, 1)
    assert pointwise.weight.std().item() == pytest.approx((2 / 960) ** 0.5, rel=0.02)  # fan_out
    # torch counts a depthwise convolution's fan_out over all its 960 output channels
    assert depthwise.weight.std().item() == pytest.approx((2 / (9 * 960)) ** 0.5, rel=0.05)
    assert model.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.classifier[1].bias.any()


def test_dropout_is_set_and_acts_in_training_only():
    model = build_model("mobilenet_v2", {"num_classes": 4, "dropout": 0.5}, seed=0)
    assert model.classifier[0].p == 0.5
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


def test_a_whole_number_will_do_for_a_float():
    model = build_model("mobilenet_v2", {"num_classes": 4, "width_mult": 1, "dropout": 0}, seed=0)
    assert n_parameters(model) == n_parameters(mobilenet_v2(4))


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("width_mult", 0, "greater than 0"),
        ("width_mult", 1e9, "less than or equal to 10"),
        ("width_mult", float("nan"), "a finite number"),
        ("width_mult", "1.0", "a valid number"),
        ("dropout", 1, "less than 1"),
        ("dropout", -0.1, "greater than or equal to 0"),
        ("dropout", False, "a valid number"),
        ("stem_stride", 3, "1 or 2"),
        ("stem_stride", [2], "1 or 2"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, wanted):
    with pytest.raises(SpecError) as caught:
        build_model("mobilenet_v2", {argument: value}, seed=0)
    assert caught.value.message == f"model.args.{argument}: got {value!r}, wanted {wanted}"
    assert caught.value.hint == (
        "'mobilenet_v2' accepts num_classes=1000, width_mult=1.0, dropout=0.2, stem_stride=2, in_channels=3"
    )
