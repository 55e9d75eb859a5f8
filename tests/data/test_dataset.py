from dataclasses import replace

import torch

from glue_cli.data.dataset import Dataset, Ragged

ROWS = [[5, 6, 7], [8], [9, 10]]


def test_subset_keeps_order_and_names():
    dataset = Dataset(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]), ("a", "b", "c"))
    part = dataset.subset(torch.tensor([2, 0]))
    assert part.inputs.tolist() == [[4, 5], [0, 1]] and part.targets.tolist() == [2, 0]
    assert part.class_names == ("a", "b", "c") and len(part) == 2 and not part.has_images


def ragged(rows, padding=0):
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int32)
    return Ragged(values, lengths.cumsum(0) - lengths, lengths, padding)


def test_rows_of_unequal_length_are_padded_at_the_end():
    rows = ragged(ROWS, padding=1)
    assert rows.padded(3).tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1]] and rows.padded(3).dtype == torch.int64
    assert rows.padded(5)[2].tolist() == [9, 10, 1, 1, 1] and len(rows) == 3
    picked = rows[torch.tensor([2, 1, 2])]
    assert picked.padded(2).tolist() == [[9, 10], [8, 1], [9, 10]] and picked.values is rows.values


def test_types_go_with_their_rows():
    first, second = replace(ragged(ROWS), types=torch.tensor([0, 0, 1, 1, 0, 1], dtype=torch.int32)), ragged([[4, 4]])
    assert first[torch.tensor([2, 0])].padded_types(3).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert second.padded_types(2) is None and first.following().types is None
    assert first.joined(second).padded_types(3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert second.joined(first).padded_types(3).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert len(Dataset(first, torch.zeros(3)).tensors()) == len(Dataset(ragged(ROWS), torch.zeros(3)).tensors()) + 1


def test_what_follows_each_value():
    assert ragged(ROWS).following().padded(3).tolist() == [[6, 7, -100], [-100] * 3, [10, -100, -100]]
    assert ragged(ROWS).following()[torch.tensor([2])].padded(2).tolist() == [[10, -100]]


def test_texts_in_a_dataset():
    rows = ragged(ROWS)
    labelled, alone = Dataset(rows, torch.tensor([1, 0, 1])), Dataset(rows, rows.following())
    assert labelled.labels.tolist() == [1, 0, 1] and alone.labels is None
    part = alone.subset(torch.tensor([2, 0]))
    assert part.inputs.lengths.tolist() == [2, 3] and part.targets.lengths.tolist() == [1, 2] and len(part) == 2
    assert labelled.shape == [3] and labelled.to(torch.device("cpu")).inputs is rows
    assert Dataset(torch.zeros(3, 2), torch.zeros(3)).labels is None


def test_data_sets_are_joined_one_behind_the_other():
    one, two = (
        Dataset(torch.zeros(2, 3), torch.tensor([0, 1]), ("a", "b")),
        Dataset(torch.ones(1, 3), torch.tensor([1])),
    )
    both = one.joined(two)
    assert both.inputs.tolist() == [[0] * 3, [0] * 3, [1] * 3] and both.targets.tolist() == [0, 1, 1]
    assert both.class_names == ("a", "b")
    assert one.joins(two) and not one.joins(Dataset(torch.ones(1, 4), torch.tensor([1])))
    rows, more = ragged(ROWS), ragged([[4, 3, 2, 1], [7]])[torch.tensor([1, 0])]
    texts, others = Dataset(rows, rows.following()), Dataset(more, more.following())
    joined = texts.joined(others)
    assert texts.joins(others)
    assert joined.inputs.padded(4).tolist() == [*rows.padded(4).tolist(), [7, 0, 0, 0], [4, 3, 2, 1]]
    assert joined.targets.padded(4).tolist()[3:] == [[-100] * 4, [3, 2, 1, -100]]
    assert joined.targets.padded(4).tolist()[:3] == rows.following().padded(4).tolist()
