import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from glue_cli.checkpoints.classes import are_same_classes, class_names_of, is_number, is_numbering, match_classes
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint


@pytest.fixture
def said(tmp_path):
    """Read the class names of a model's folder with such a configuration."""
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")

    def names(config, name=""):
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return class_names_of(read_checkpoint(tmp_path / name))

    return names


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"id2label": {str(k): f"class {k}" for k in range(11)}}, tuple(f"class {k}" for k in range(11))),
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"id2label": {"0": 3, "1": None}}, ("3", "None")),
        ({"label_names": ["n01440764", "n01443537"]}, ("n01440764", "n01443537")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ()),
        ({"id2label": {"0": "LABEL_0", "1": "dog"}}, ("LABEL_0", "dog")),
        ({"id2label": {"1": "b"}}, ()),
        ({"id2label": None}, ()),
        ({"id2label": "cat"}, ()),
        ([], ()),
        ({}, ()),
        ("{", ()),
    ],
)
def test_what_a_configuration_says(said, config, wanted):
    assert said(config) == said(config, "model.safetensors") == wanted


def test_glue_s_metadata_count_before_a_configuration(said, tmp_path):
    said({"id2label": {"0": "x", "1": "y"}})
    write_checkpoint(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {"class_names": ["cat", "dog"]})
    assert class_names_of(read_checkpoint(tmp_path)) == ("cat", "dog")
    write_checkpoint(tmp_path / "model.safetensors", {"w": torch.zeros(1)}, {"class_names": None})
    assert class_names_of(read_checkpoint(tmp_path)) == ("x", "y")
    write_checkpoint(tmp_path / "alone.safetensors", {"w": torch.zeros(1)}, {"class_names": ["ant"]})
    assert class_names_of(read_checkpoint(tmp_path / "alone.safetensors")) == ("ant",)


@pytest.mark.parametrize(
    ("names", "among", "places"),
    [
        ("cat dog", "dog ant cat", [2, 0]),
        ("cat dog", "dog", [None, 0]),
        ("New-York ROME", "rome new_york", [1, 0]),
        ("e\u0301 cat", "cat \xe9", [1, 0]),  # composed otherwise
        ("Cat cat", "cat Cat", [1, 0]),  # as they are, since that finds both
        ("Cat cat", "CAT dog", [None, None]),  # which of the two is meant, nobody knows
        ("crane", "crane dog crane", [None]),
        ("crane dog crane", "crane dog crane", [0, 1, 2]),
        ("0 1 10 2", "0 1 2 3 4 5 6 7 8 9 10", [0, 1, 10, 2]),  # folders, sorted as text
        ("0 1 2", "cat dog ant", [0, 1, 2]),
        ("0 1 10", "cat dog ant", [0, 1, None]),
        ("cat dog", "0 1 2", [0, 1]),
        ("cat dog ant", "0 1", [0, 1, None]),
        ("3 5", "0 1 2 3", [3, None]),  # both are numbers: 5 is none of them
        ("cat dog", "1 2", [None, None]),
        ("007 cat", "a b", [None, None]),
    ],
)
def test_where_names_are_among_others(names, among, places):
    assert match_classes(names.split(), among.split()) == places


@given(st.lists(st.text(max_size=4), unique=True, max_size=6), st.randoms())
def test_names_in_another_order_are_found_where_they_are(names, random):
    among = random.sample(names, len(names))
    places = match_classes(names, among)
    assert are_same_classes(names, names)
    if not is_numbering(among) and not all(map(is_number, names)):
        assert [among[place] for place in places] == names
        assert are_same_classes(names, among) == (names == among)


def test_what_a_number_is():
    for text in ("0", "7", "4294967295"):
        assert is_number(text)
    for text in ("", "007", "-1", "1.0", " 1", "٣", "1" * 5000, "one", "1\n"):
        assert not is_number(text)
    assert is_numbering(["0", "1"]) and not is_numbering(["1", "0"]) and not is_numbering(["0", "2"])
