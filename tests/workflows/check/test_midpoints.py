"""Which examples the losses of a check are measured on."""

import pytest
import torch

from glue_cli.data.dataset import Dataset
from glue_cli.data.loader import Examples
from glue_cli.workflows.check.midpoints import judged_examples


def split(n, n_classes=2):
    """Return examples in the order of their classes, as image folders have them."""
    labels = torch.arange(n) * n_classes // n
    return Examples(Dataset(torch.zeros(n, 1), labels, None), None, None)


@pytest.mark.parametrize(("n_train", "n_val"), [(2000, 10), (2000, 2000), (40, 20)])
def test_all_classes_are_among_them(n_train, n_val):
    target = {"train": split(n_train), "val": split(n_val)}
    found = judged_examples(target, 3)
    assert len(found) == min(512, n_train + n_val)
    assert 0.4 < found.dataset.labels.double().mean() < 0.6
    assert torch.equal(found.dataset.labels, judged_examples(target, 3).dataset.labels)
