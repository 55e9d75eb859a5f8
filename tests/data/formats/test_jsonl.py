import json
import os

import pytest

from glue_cli.data import read_dataset
from glue_cli.data.formats import jsonl
from glue_cli.data.formats.jsonl import read_jsonl
from glue_cli.foundation.errors import DataError
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="jsonl", root=".")


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def read(root, split="train", data=DATA):
    return read_jsonl(data, split, root=root, cache=None, progress=lambda event: None)


def test_texts_with_numbers(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "good", "label": 1, "stars": 5}, "", {"label": 0, "text": "schön ☕"})
    found = read(tmp_path)
    assert found.texts == ["good", "schön ☕"] and found.targets.tolist() == [1, 0] and found.class_names is None
    assert read(tmp_path, "val") is None


def test_pairs_of_texts(tmp_path):
    write(
        tmp_path / "train.jsonl",
        {"text": "a", "text_pair": "b", "label": 1},
        {"text": "c", "text_pair": "", "label": 0},
    )
    assert read(tmp_path).pairs == ["b", ""]
    write(tmp_path / "train.jsonl", {"text": "a", "label": 1})
    assert read(tmp_path).pairs is None


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"text": "c", "label": 0}, "train.jsonl:2: there is no 'text_pair', but .*train.jsonl:1 has one"),
        ({"text": "c", "text_pair": 5, "label": 0}, "train.jsonl:2: 'text_pair' is 5, wanted text"),
    ],
)
def test_half_a_pair_is_named(tmp_path, second, message):
    write(tmp_path / "train.jsonl", {"text": "a", "text_pair": "b", "label": 1}, second)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_pairs_without_labels_are_refused(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a", "text_pair": "b"})
    with pytest.raises(DataError, match="pairs of texts need labels"):
        read(tmp_path)


def test_class_names_are_numbered_as_in_train_in_every_split(tmp_path):
    write(tmp_path / "train.jsonl", *({"text": "x", "label": name} for name in ("so-so", "bad", "good", "bad")))
    write(tmp_path / "val.jsonl", {"text": "x", "label": "so-so"})
    write(tmp_path / "test.jsonl", {"text": "x", "label": "good"})
    found = {split: read(tmp_path, split) for split in ("train", "val", "test")}
    assert {split: one.targets.tolist() for split, one in found.items()} == {
        "train": [2, 0, 1, 0],
        "val": [2],
        "test": [1],
    }
    assert {one.class_names for one in found.values()} == {("bad", "good", "so-so")}
    write(tmp_path / "test.jsonl", {"text": "x", "label": "good"}, {"text": "x", "label": "fine"})
    with pytest.raises(DataError, match="test.jsonl:2: class 'fine' is unknown to the train split") as caught:
        read(tmp_path, "test")
    assert caught.value.hint.startswith("train has bad, good, so-so: ")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match="train.jsonl' is missing"):
        read(tmp_path, "test")


@pytest.mark.parametrize("extra", [{}, {"label": None}])
def test_texts_alone(tmp_path, extra):
    write(tmp_path / "train.jsonl", {"text": "a", **extra}, {"text": "b", **extra})
    assert read(tmp_path).texts == ["a", "b"] and read(tmp_path).targets is None


def test_splits_name_the_files(tmp_path):
    write(tmp_path / "books.jsonl", {"text": "a", "label": "x"})
    write(tmp_path / "val.jsonl", {"text": "b", "label": "x"})
    data = DataSpec(format="jsonl", root=".", splits={"train": "books", "test": "val"})
    assert read(tmp_path, "train", data).texts == ["a"] and read(tmp_path, "test", data).texts == ["b"]
    assert read(tmp_path, "test", data).class_names == ("x",)
    assert read(tmp_path, "val", data) is None
    with pytest.raises(DataError, match="dev.jsonl' is missing"):
        read(tmp_path, "val", DataSpec(format="jsonl", root=".", splits={"val": "dev"}))


GOOD = {"text": "fine", "label": 0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "train.jsonl' is empty"),
        (["", " "], "train.jsonl' is empty"),
        ([GOOD, '{"text": "cut of'], r"train.jsonl:2: not JSON: "),
        (["", GOOD, "nonsense"], r"train.jsonl:3: not JSON: "),
        (["[" * 100_000], r"train.jsonl:1: not JSON: "),
        ([GOOD, ["fine", 0]], "train.jsonl:2: found a list"),
        ([GOOD, {"txt": "fine", "label": 0}], "train.jsonl:2: there is no 'text'"),
        ([{"text": None, "label": 0}], "train.jsonl:1: 'text' is null"),
        ([{"text": ["a"], "label": 0}], r"train.jsonl:1: 'text' is \[\"a\"\]"),
        ([GOOD, {"text": "fine"}], "train.jsonl:2: there is no label, but .*train.jsonl:1 has one"),
        ([{"text": "fine"}, GOOD], "train.jsonl:2: there is a label, but .*train.jsonl:1 has none"),
        ([GOOD, {**GOOD, "label": "bad"}], "train.jsonl:2: the label is 'bad', but .*train.jsonl:1 has 0"),
        ([{**GOOD, "label": "bad"}, GOOD], "train.jsonl:2: the label is 0, but .*train.jsonl:1 has 'bad'"),
        ([GOOD, {**GOOD, "label": -1}], "train.jsonl:2: the label is -1, wanted 0 or more"),
        (['{"text": "cut \\ud83d", "label": 0}'], "train.jsonl:1: the text has half of a surrogate pair"),
        ([{**GOOD, "label": 10**20}], "train.jsonl:1: the label is 1000"),
        ([{**GOOD, "label": 0.5}], "train.jsonl:1: the label is 0.5, wanted a whole number or a class name"),
        ([{**GOOD, "label": True}, {**GOOD, "label": 1}], "train.jsonl:1: the label is True, wanted"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    write(tmp_path / "train.jsonl", *lines)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "\xff\xfe", "label": 0}\n')
    with pytest.raises(DataError, match="train.jsonl:1: not JSON"):
        read(tmp_path)
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(DataError, match="test.jsonl' cannot be read"):
        read(tmp_path, "test")


def test_the_real_reviews(find_real, make_tokenizer, tmp_path):
    root = find_real("amazon-domains")
    data = DataSpec(format="jsonl", root=".", splits={"train": "kitchen"})
    folder = make_tokenizer(tmp_path / "model")
    dataset = read_dataset(data, "train", root=root, tokenizer=folder)
    assert len(dataset) == 2000 and dataset.targets.bincount().tolist() == [1000, 1000]
    assert dataset.inputs.lengths.max() == 512 and (dataset.inputs.values < 16).all()


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_BYTES_A_CHARACTER", 1)
    monkeypatch.setattr(jsonl, "MOST_CHARACTERS", 100)
    write(tmp_path / "train.jsonl", {"text": "short"}, {"text": "x" * 87})
    assert len(read(tmp_path).texts[1]) == 87  # a line of 100 bytes
    write(tmp_path / "train.jsonl", {"text": "short"}, {"text": "x" * 88})
    with pytest.raises(DataError, match=r"train.jsonl:2: the line is longer than 100 B"):
        read(tmp_path)
    assert len(read(tmp_path, data=DATA.model_copy(update={"max_characters": 101})).texts[1]) == 88


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="cannot be read: .*no regular file"):
        read(tmp_path)


def test_labels_may_be_called_so(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a", "labels": 1}, {"text": "b", "labels": 0})
    assert read(tmp_path).targets.tolist() == [1, 0]


def test_a_split_without_the_labels_of_train_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a", "label": 1})
    write(tmp_path / "test.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="test.jsonl' has no labels, but .*train.jsonl' has"):
        read(tmp_path, "test")


def test_numbers_to_predict_name_the_format_that_reads_them(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a", "label": 1.5})
    with pytest.raises(DataError, match="the label is 1.5") as caught:
        read(tmp_path)
    assert "format: huggingface, columns: {target: NAME} and loss: mse" in caught.value.hint
