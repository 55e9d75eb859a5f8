"""Check that what is blended is finite."""

import torch
from torch import Tensor

from glue_cli.blend.constants import not_finite
from glue_cli.checkpoints.header import Checkpoint


def check_finite(expert: Checkpoint, name: str, tensor: Tensor) -> None:
    """Check that a tensor has neither NaN nor infinity.

    The sum is checked first: it is cheaper, and if it is finite, so is every element.

    Raises:
        CheckpointError: it has NaN or infinity.
    """
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise not_finite(expert, name, tensor[~torch.isfinite(tensor)][0].item())
