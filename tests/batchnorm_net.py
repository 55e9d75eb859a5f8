"""A small network with BatchNorm, and batches for it."""

import torch
from torch import nn


class Net(nn.Module):
    """Two kinds of BatchNorm, one without statistics, and dropout on the way to them."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))
        self.plain = nn.BatchNorm2d(4, track_running_stats=False)
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3, affine=False, momentum=0.3))

    def forward(self, images):
        return self.last(self.plain(self.first(images)))


def seeded(dropout=0.0):
    torch.manual_seed(0)
    return Net(dropout).eval()


BATCHES = [(torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(n)) + n, None) for n in (8, 8, 5)]
