"""ResNet-20 against He et al. 2016."""

import pytest
import torch
from torch import nn

from glue_cli.models import build_model
from glue_cli.models.resnet import BasicBlock, resnet20


def test_parameter_count_is_the_papers():
    """Table 6 has 0.27M; exactly 269,722 with ten classes and shortcuts without parameters."""
    assert sum(p.numel() for p in resnet20().parameters()) == 269_722
    assert sum(p.numel() for p in resnet20(num_classes=100).parameters()) == 269_722 + 90 * 65


def test_twenty_weighted_layers():
    model = resnet20()
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 20
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 19


def test_stages_halve_the_image_and_double_the_channels():
    model = resnet20().eval()
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("size", [7, 8])
def test_option_a_shortcut_is_a_strided_copy_and_zeros(size):
    block = BasicBlock(4, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 4, size, size)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert out[:, 4:].shape == (2, 2, 4, 4)
    assert not out[:, 4:].any()


def test_forward_is_the_papers():
    """Fig. 3 and section 4.2 written out; BatchNorm with the batch's own statistics."""
    model = build_model("resnet20", {}, seed=0).double()
    x = images = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def conv_bn(x, conv, stride=1):
        x = nn.functional.conv2d(x, conv.weight, stride=stride, padding=1)
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    x = conv_bn(x, model.conv1).clamp(min=0)
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            stride = 2 if block is stage[0] and stage is not model.layer1 else 1
            residual = conv_bn(conv_bn(x, block.conv1, stride).clamp(min=0), block.conv2)
            if stride == 2:
                x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)
            x = (x + residual).clamp(min=0)
    wanted = x.mean((2, 3)) @ model.fc.weight.T
    torch.testing.assert_close(model(images), wanted)


def test_a_plain_block_adds_its_input_unchanged():
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_he_initialisation():
    model = build_model("resnet20", {}, seed=0)
    assert model.layer3[1].conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    # where fan_in and fan_out differ, fan_in decides
    assert model.layer3[0].conv1.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.03)
    assert model.fc.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert not model.fc.bias.any()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
