import pytest
import torch

from glue_cli.core.errors import SpecError
from glue_cli.core.spec import DataSpec
from glue_cli.data.dataset import Dataset, split_name


def test_subset_keeps_order_and_names():
    dataset = Dataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]), ("a", "b", "c"))
    part = dataset.subset(torch.tensor([2, 0]))
    assert part.inputs.tolist() == [[4, 5], [0, 1]] and part.targets.tolist() == [2, 0]
    assert part.class_names == ("a", "b", "c") and len(part) == 2 and not part.has_images


def test_split_names():
    plain = DataSpec(format="image-folder", root=".")
    assert [split_name(plain, split) for split in ("train", "val", "test")] == ["train", "val", "test"]
    mapped = DataSpec(format="image-folder", root=".", splits={"test": "val"})
    assert [split_name(mapped, split) for split in ("train", "val", "test")] == ["train", None, "val"]
    with pytest.raises(SpecError, match="gives the name 'test' to another split, so there is no test split"):
        split_name(DataSpec(format="image-folder", root=".", splits={"val": "test"}), "test")
