import pytest
import torch

from glue_cli.data.classes import Classes, classes_without_example, renumber, renumbered
from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError

LABELS = torch.tensor([0, 2, 2, 1])


def of(*names):
    return Classes(names, "the model", "do something")


def test_labels_follow_their_names():
    labels, names = renumber(LABELS, ("ant", "bee", "cat"), of("cat", "dog", "bee", "ant"), "'d'")
    assert labels.tolist() == [3, 0, 0, 2] and names == ("cat", "dog", "bee", "ant")
    assert [names[label] for label in labels] == ["ant", "cat", "cat", "bee"]


@pytest.mark.parametrize(
    ("own", "wanted", "names"),
    [
        (None, (), None),
        (None, ("a", "b", "c"), ("a", "b", "c")),
        (None, ("a", "b"), None),  # which cannot be the names of these labels
        (("a", "b", "c"), (), ("a", "b", "c")),
        (("a", "b", "c"), ("A", "B", "C", "D"), ("A", "B", "C", "D")),
        (("0", "1", "2"), ("a", "b", "c"), ("a", "b", "c")),
        (("a", "b", "c"), ("0", "1", "2", "3"), ("a", "b", "c")),
        (("0", "1", "2"), ("0", "1", "2", "3"), ("0", "1", "2", "3")),
    ],
)
def test_labels_that_stay_as_they_are_are_not_copied(own, wanted, names):
    labels, found = renumber(LABELS, own, of(*wanted), "'d'")
    assert labels is LABELS and found == names


def test_a_class_that_the_others_lack_is_refused_with_both_lists():
    with pytest.raises(DataError, match="^'d' has classes that the model does not have: bee$") as caught:
        renumber(LABELS, ("ant", "bee", "cat"), of("cat", "ant", "dog"), "'d'")
    assert caught.value.items == ("'d': ant, bee, cat", "the model: cat, ant, dog")
    assert caught.value.hint == "do something"


def test_a_class_without_an_example_may_be_unknown():
    labels, names = renumber(LABELS, ("ant", "bee", "cat", "yak"), of("cat", "bee", "ant"), "'d'")
    assert labels.tolist() == [2, 0, 0, 1] and len(names) == 3


def test_a_long_list_is_cut():
    many = tuple(f"class {k}" for k in range(1000))
    with pytest.raises(DataError) as caught:
        renumber(LABELS, ("ant", "bee", "cat"), of(*many), "'d'")
    assert caught.value.items[1].endswith("class 19, ... (1,000 in all)")


def test_a_data_set_of_labels_is_renumbered_and_any_other_left(tmp_path):
    inputs = torch.zeros(4, 2)
    found = renumbered(Dataset(inputs, LABELS, ("a", "b", "c")), of("c", "b", "a"), "'d'")
    assert found.targets.tolist() == [2, 0, 0, 1] and found.inputs is inputs
    numbers = Dataset(inputs, torch.zeros(4))
    assert renumbered(numbers, of("c", "b", "a"), "'d'") is numbers


def test_classes_without_an_example():
    assert classes_without_example(Dataset(LABELS, LABELS, ("a", "b", "c", "d"))) == ["d"]
    assert classes_without_example(Dataset(LABELS, LABELS, ("a", "b", "c"))) == []
    assert classes_without_example(Dataset(LABELS, LABELS)) == []
    assert classes_without_example(Dataset(LABELS, torch.zeros(4), ("a", "b"))) == []
