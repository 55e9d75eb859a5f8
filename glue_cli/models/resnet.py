"""ResNet-20, the CIFAR form of He et al. 2016."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glue_cli.models.arguments import Count
from glue_cli.models.image_shapes import check_images


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut that has no parameters (option A)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.n_padded = n_out - n_in
        self.conv1 = nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, n_in, H, W] -> [N, n_out, ceil(H/stride), ceil(W/stride)]."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self._shortcut(x), inplace=True)

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, and zeros in the channels that are new; keeps channels_last."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.n_padded > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, self.n_padded))
        return x


class ResNet20(nn.Module):
    """A 3x3 stem, three stages of three basic blocks with 16, 32 and 64 channels, a linear head."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: [N, in_channels, H, W] -> [N, num_classes]; made for 32x32, takes any size."""
        check_images(images, self.in_channels)
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # [N, 16, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [N, 64, ceil(H/4), ceil(W/4)]
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # [N, 64]
        logits: Tensor = self.fc(x)
        return logits


def resnet20(num_classes: Count = 10, in_channels: Count = 3) -> ResNet20:
    """Build ResNet-20 with He initialisation of every weight, BatchNorm 1 and 0; 269,722 parameters by default.

    Args:
        num_classes: outputs.
        in_channels: 1 for grey images, 3 for colour.
    Cost: 40.6 million multiply-adds for a 32x32 image.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, with shortcuts of option A;
        He et al. 2015, "Delving Deep into Rectifiers", eq. (10), for the initialisation.
    """
    return ResNet20(num_classes, in_channels)


def _stage(n_in: int, n_out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(n_in, n_out, stride),
        BasicBlock(n_out, n_out, 1),
        BasicBlock(n_out, n_out, 1),
    )
