"""The head of reviews.yaml: a small residual net on the features of a frozen encoder."""

from torch import Tensor, nn


class ResidualHead(nn.Module):
    """A linear stem, two residual layers with ReLU, and a linear head."""

    def __init__(self, n_inputs: int, width: int, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(n_inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits: float [N, n_inputs] -> [N, n_classes]."""
        x = self.stem(features).relu()  # [N, width]
        for layer in self.layers:
            x = x + layer(x).relu()
        logits: Tensor = self.head(x)
        return logits


def residual_head(n_inputs: int, width: int, n_classes: int) -> ResidualHead:
    return ResidualHead(n_inputs, width, n_classes)
