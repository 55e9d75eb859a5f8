"""What tells examples from others."""

import torch

from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.identity import identity_of
from glue_cli.data.loader import Examples


def images(n=6):
    pixels = torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Examples(Dataset(pixels, torch.arange(n)), (0.5,), (0.25,))


def texts(values, lengths):
    lengths = torch.tensor(lengths)
    rows = Ragged(torch.tensor(values, dtype=torch.int32), lengths.cumsum(0) - lengths, lengths)
    return Examples(Dataset(rows, torch.zeros(len(lengths), dtype=torch.int64)), None, None)


def test_equal_examples_are_the_same_wherever_they_lie():
    whole = images()
    assert identity_of(whole) == identity_of(images())
    assert identity_of(whole.subset(torch.tensor([2, 4]))) == identity_of(images().subset(torch.tensor([2, 4])))
    spread = Dataset(whole.dataset.inputs.repeat(2, 1, 1, 1)[::2][[0, 3]], torch.tensor([0, 0]))
    gathered = Dataset(spread.inputs.clone().contiguous(), torch.tensor([0, 0]))
    assert identity_of(Examples(spread, None, None)) == identity_of(Examples(gathered, None, None))


def test_whatever_a_model_would_see_otherwise_makes_others():
    first = images()
    changed = images()
    changed.dataset.inputs[-1, 0, 0, 0] ^= 1
    relabelled = images()
    relabelled.dataset.targets[0] = 5
    others = [
        changed,
        relabelled,
        first.subset(torch.tensor([1, 0, 2, 3, 4, 5])),
        first.subset(torch.arange(5)),
        Examples(first.dataset, (0.4,), (0.25,)),
    ]
    assert len({identity_of(examples) for examples in (first, *others)}) == 6


def test_texts_are_told_apart_by_where_they_end():
    assert identity_of(texts([1, 2, 3], [1, 2])) != identity_of(texts([1, 2, 3], [2, 1]))
    assert identity_of(texts([1, 2, 3], [1, 2])) == identity_of(texts([1, 2, 3, 9], [1, 2, 1]).subset(torch.arange(2)))
