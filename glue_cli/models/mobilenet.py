"""MobileNetV2 with torchvision's tensor names, so that checkpoints of each load into the other."""

from typing import Literal

import torch
from torch import Tensor, nn

from glue_cli.models.arguments import Count, Fraction, Multiplier
from glue_cli.models.image_shapes import check_images

# Table 2 of the paper, one row per stage: (expansion t, channels c, blocks n, stride s of the first block).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_N_STEM = 32
_N_LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a shortcut where the shape stays the same."""

    def __init__(self, n_in: int, n_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and n_in == n_out
        n_hidden = n_in * expansion
        expand = [] if expansion == 1 else [_conv_bn_relu6(n_in, n_hidden, kernel_size=1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(n_hidden, n_hidden, kernel_size=3, stride=stride, groups=n_hidden),
            nn.Conv2d(n_hidden, n_out, kernel_size=1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, n_in, H, W] -> [N, n_out, ceil(H/stride), ceil(W/stride)]."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """A 3x3 stem, seventeen inverted residuals, a 1x1 convolution, dropout, a linear head."""

    def __init__(
        self, num_classes: int, width_mult: float, dropout: float, stem_stride: int, in_channels: int
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        n_in = _round_channels(_N_STEM * width_mult)
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, n_in, kernel_size=3, stride=stem_stride)]
        for expansion, channels, n_blocks, first_stride in _STAGES:
            n_out = _round_channels(channels * width_mult)
            for block in range(n_blocks):
                stride = first_stride if block == 0 else 1
                layers.append(InvertedResidual(n_in, n_out, stride=stride, expansion=expansion))
                n_in = n_out
        n_last = _round_channels(_N_LAST * max(1.0, width_mult))  # section 4: never narrower than at 1.0
        layers.append(_conv_bn_relu6(n_in, n_last, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(n_last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: [N, in_channels, H, W] -> [N, num_classes], for any H and W."""
        check_images(images, self.in_channels)
        x: Tensor = self.features(images)  # [N, n_last, H/32, W/32], rounded up; /16 with stem_stride 1
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)  # [N, n_last]
        logits: Tensor = self.classifier(x)
        return logits


def mobilenet_v2(
    num_classes: Count = 1000,
    width_mult: Multiplier = 1.0,
    dropout: Fraction = 0.2,
    stem_stride: Literal[1, 2] = 2,
    in_channels: Count = 3,
) -> MobileNetV2:
    """Build MobileNetV2 with torchvision's names, shapes and initialisation; 3,504,872 parameters by default.

    Args:
        num_classes: outputs.
        width_mult: multiplies the channels of every layer, which are then rounded to multiples of 8.
        dropout: probability, before the head.
        stem_stride: stride of the first convolution; 1 keeps small images (32 to 64 pixels) from shrinking too early.
        in_channels: 1 for grey images, 3 for colour.
    Cost: 300 million multiply-adds for a 224x224 image.
    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2.
    """
    return MobileNetV2(num_classes, width_mult, dropout, stem_stride, in_channels)


def _conv_bn_relu6(n_in: int, n_out: int, *, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel_size // 2
    conv = nn.Conv2d(n_in, n_out, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU6(inplace=True))


def _round_channels(channels: float) -> int:
    """Return the nearest multiple of 8, halves up, at least 8, and never less than 90 % of `channels`."""
    rounded = max(8, int(channels / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
