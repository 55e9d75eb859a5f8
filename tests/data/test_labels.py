import pytest
import torch

from glue_cli.data.labels import encode_labels
from glue_cli.foundation.errors import DataError


def encode(written, train=None):
    labels, names = encode_labels(written, lambda i: f"line {i}", lambda: written if train is None else train)
    assert labels.dtype == torch.int64
    return labels.tolist(), names


@pytest.mark.parametrize("written", [[3, 0, 11], ["3", "0", "11"], [3, "0", "11"], ["3", 0, 11], [3.0, 0, 11.0]])
def test_numbers_in_quotes_are_numbers(written):
    assert encode(written) == ([3, 0, 11], None)


def test_truths_are_numbers_with_names():
    assert encode([True, False, True]) == ([1, 0, 1], ("false", "true"))


@pytest.mark.parametrize(("label", "hint"), [(0.5, "loss: mse"), ([0, 1], "one label an example"), (None, "leave")])
def test_labels_of_another_kind_say_what_to_do(label, hint):
    with pytest.raises(DataError, match="line 1: the label is") as caught:
        encode([0, label])
    assert hint in caught.value.hint


def missing():
    raise DataError("there is no train split")


def test_numbers_without_a_train_split_count_as_they_are():
    labels, names = encode_labels([1, 0], str, missing)
    assert labels.tolist() == [1, 0] and names is None
    with pytest.raises(DataError, match="no train split"):
        encode_labels(["cat"], str, missing)


def test_numbers_count_as_they_are_where_train_has_truths():
    assert encode([1, 0], train=[True, False]) == ([1, 0], None)


def test_digits_are_names_where_train_has_words_too():
    assert encode(["2", "3"], train=["3", "cat", "2"]) == ([0, 1], ("2", "3", "cat"))
    assert encode([2, 3], train=["3", "cat", "2"]) == ([0, 1], ("2", "3", "cat"))  # as pandas makes them there
    assert encode(["007", "3"]) == ([0, 1], ("007", "3"))


def test_an_empty_column_has_no_labels():
    assert encode([]) == ([], None)


@pytest.mark.parametrize(
    ("written", "train", "message"),
    [
        ([0, "cat"], None, "line 1: the label is 'cat', but line 0 has 0"),
        (["cat", 0], None, "line 1: the label is 0, but line 0 has 'cat'"),
        ([0, True], None, "line 1: the label is True, wanted a whole number"),
        ([0, 0.5], None, "line 1: the label is 0.5"),
        ([-1], None, "line 0: the label is -1, wanted 0 or more"),
        (["0", "4294967296"], None, "line 1: the label is 4294967296, wanted 0 or more"),
        (["cat", "yak"], ["dog", "cat"], "line 1: class 'yak' is unknown to the train split"),
        (["0", "1"], ["dog", "cat"], "line 0: class '0' is unknown to the train split"),
    ],
)
def test_labels_that_are_none_are_refused(written, train, message):
    with pytest.raises(DataError, match=message):
        encode(written, train)


def test_a_letter_composed_otherwise_is_the_same_name():
    targets, names = encode_labels(["\xe9", "e\u0301", "cat"], str, lambda: ["cat", "e\u0301"])
    assert targets.tolist() == [1, 1, 0] and names == ("cat", "\xe9")
    _, names = encode_labels(["e\u0301", "fox"], str, lambda: ["fox", "e\u0301"])
    assert names == ("\xe9", "fox")  # in the order of what is written, as every library has it
