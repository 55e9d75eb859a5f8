import re

import pytest
import torch

from glue_cli.checkpoints.classes import TRUTHS
from glue_cli.data.classes import Classes, classes_without_example, doubt_about, renumber, renumbered
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


NUMBERS = ("0", "1", "10", "11", "2")  # as a list of folders is sorted


def test_numbers_that_are_names_are_matched_as_names():
    labels, names = renumber(torch.tensor([0, 2, 11]), None, of(*NUMBERS), "'d'")
    assert labels.tolist() == [0, 4, 3] and names == NUMBERS
    stars = renumber(torch.tensor([1, 2, 1]), None, of("1", "2", "3"), "'d'")
    assert stars[0].tolist() == [0, 1, 0]
    encoded = renumber(torch.tensor([0, 2]), None, of("1", "2", "3"), "'d'")  # 0 is none of the names
    assert encoded[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("True", "False"), [1, 0, 1]),
        (("yes", "no"), [1, 0, 1]),
        (("N", "Y"), [0, 1, 0]),
        (("0", "1"), [0, 1, 0]),
        (("ham", "spam"), [0, 1, 0]),
        ((), [0, 1, 0]),
    ],
)
def test_truths_are_the_classes_of_that_name(names, labels):
    assert renumber(torch.tensor([0, 1, 0]), TRUTHS, of(*names), "'d'")[0].tolist() == labels


@pytest.mark.parametrize(
    ("own", "names", "of_library", "said"),
    [
        (("bad", "good"), (), True, "the model does not name its classes; .* 0 bad, 1 good"),
        (("bad", "good"), (), False, None),
        (("0", "1", "2"), (), True, None),
        (("bad", "good"), ("good", "bad"), True, None),
        (None, ("1", "2", "3"), True, "taken for the classes' names, .* '1' is class 0, '2' is class 1"),
        (None, ("0", "1", "2"), True, None),
        (None, ("a", "b", "c"), True, None),
        (TRUTHS, ("ham", "spam"), True, "false and true are taken to be the classes 0 and 1 of the model, ham, spam"),
        (TRUTHS, ("yes", "no"), True, None),
    ],
)
def test_a_guess_is_said(own, names, of_library, said):
    dataset = Dataset(torch.zeros(2, 1), torch.tensor([1, 2] if own is None else [0, 1]), own)
    found = doubt_about(dataset, of(*names), of_library=of_library)
    assert found is None if said is None else re.search(said, found)


def test_numbers_to_predict_leave_nothing_to_guess():
    assert doubt_about(Dataset(torch.zeros(2, 1), torch.zeros(2), None), of("a"), of_library=True) is None
