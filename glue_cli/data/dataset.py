"""One split of a data set in memory, whatever format it came from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.core.errors import SpecError
from glue_cli.core.spec import DataSpec


@dataclass(frozen=True)
class Dataset:
    """Examples and their targets.

    Attributes:
        inputs: images, uint8 [N, C, H, W], or any other inputs, float32 [N, ...].
        targets: labels, int64 [N], or targets of a regression, float32 [N, ...].
        class_names: a name a class, in the order of the labels; None when the data set has none.
    """

    inputs: Tensor
    targets: Tensor
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def has_images(self) -> bool:
        """Whether the inputs are images in bytes, to be normalised as such."""
        return self.inputs.dtype == torch.uint8

    def subset(self, indices: Tensor) -> "Dataset":
        """Return the examples at `indices`, int64 [n], in that order."""
        return Dataset(self.inputs[indices], self.targets[indices], self.class_names)


def split_name(data: DataSpec, split: str) -> str | None:
    """Return what a split is called on disk: as `data.splits` says, else its own name.

    None for val when another split has taken that name: with `splits: {test: val}` the folder `val` is the test split,
    and there is no val split.

    Raises:
        SpecError: another split has taken the name of train or test.
    """
    for other, name in data.splits.items():
        if other == split:
            return name
    if split not in data.splits.values():
        return split
    if split == "val":
        return None
    raise SpecError(
        f"data.splits gives the name '{split}' to another split, so there is no {split} split",
        hint=f"name the {split} split in data.splits",
    )
