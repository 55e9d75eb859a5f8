"""The quick start's small CNN."""

import pytest
import torch
from torch.nn import functional as F

from glue_cli.models import build_model
from glue_cli.models.cnn import cnn


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_count():
    assert n_parameters(cnn()) == 56_554
    # convolutions, two BatchNorm tensors each, head
    assert n_parameters(cnn(3, 2, width=8)) == 9 * (2 * 8 + 8 * 16 + 16 * 16) + 2 * (8 + 16 + 16) + 16 * 3 + 3


def test_forward_is_what_the_docstring_says():
    model = build_model("cnn", {"num_classes": 3, "width": 4}, seed=0).double()
    x = images = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convs:
        x = F.conv2d(x, conv.weight, padding=1)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = x.clamp(min=0)
        if conv is convs[1]:
            x = x.view(2, 8, 3, 2, 3, 2).amax((3, 5))
    wanted = x.mean((2, 3)) @ model.head.weight.T
    torch.testing.assert_close(model(images), wanted)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (28, 28)])
def test_takes_images_of_any_size(size):
    assert cnn().eval()(torch.zeros(2, 1, *size)).shape == (2, 10)


def test_he_initialisation():
    model = build_model("cnn", {"width": 64}, seed=0)
    weight = model.features[7].weight
    assert weight.shape == (128, 128, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not model.head.bias.any()


def test_learns_bars_within_a_few_steps():
    """Horizontal against vertical bars in noise: a model that ignores its input stays at log 2."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = 0.3 * torch.randn(64, 1, 8, 8, generator=random)
    images[labels == 0, :, ::2, :] += 1
    images[labels == 1, :, :, ::2] += 1
    model = build_model("cnn", {"num_classes": 2, "width": 8}, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        assert F.cross_entropy(model(images), labels).item() < 0.1
