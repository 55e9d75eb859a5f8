"""A small convolutional network for small images, such as 8x8 grey digits: the quick start's model."""

import torch
from torch import Tensor, nn

from glue_cli.models.arguments import Count
from glue_cli.models.image_shapes import check_images


class CNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU, one 2x2 pooling, global average pooling, a linear head."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.features = nn.Sequential(
            *_conv_bn_relu(in_channels, width),
            *_conv_bn_relu(width, 2 * width),
            nn.MaxPool2d(2, ceil_mode=True),  # rounds up, so that no image is too small
            *_conv_bn_relu(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: [N, in_channels, H, W] -> [N, num_classes], for any H and W from 1 up."""
        check_images(images, self.in_channels)
        x: Tensor = self.features(images)  # [N, 2 width, ceil(H/2), ceil(W/2)]
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)  # [N, 2 width]
        logits: Tensor = self.head(x)
        return logits


def cnn(num_classes: Count = 10, in_channels: Count = 1, width: Count = 32) -> CNN:
    """Build the small CNN, with He initialisation; 56,554 parameters by default.

    Args:
        num_classes: outputs.
        in_channels: 1 for grey images, 3 for colour.
        width: channels of the first convolution; the other two have twice as many.
    Cost: 1.8 million multiply-adds for an 8x8 image.
    Source: ours; He et al. 2015, "Delving Deep into Rectifiers", for the initialisation.
    """
    return CNN(num_classes, in_channels, width)


def _conv_bn_relu(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(n_in, n_out, kernel_size=3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
