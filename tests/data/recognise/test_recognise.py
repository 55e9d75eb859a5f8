"""Data in folders: what is recognised is read back by glue's own readers, with the same counts and classes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.data import read_dataset
from glue_cli.data.recognise.found_data import match_splits
from glue_cli.data.recognise.recognise import recognise_data
from glue_cli.spec.schema import DataSpec

COLOURS = ["red", "green", "blue", "red", "green", "blue"]


def found_and_read(root, cache, **more):
    """Return what is recognised, and the training split as the spec written for it is read."""
    found = recognise_data(root, cache)
    section = {"format": found.format, "root": str(root), "splits": dict(found.splits), "columns": dict(found.columns)}
    read = read_dataset(DataSpec.model_validate({**section, **more}), "train", root=root, cache=cache)
    assert found.counts["train"] == len(read)
    if found.targets == "labels":
        assert found.n_classes == len(read.class_names or ()) or found.n_classes == int(read.labels.max()) + 1
        assert list(found.class_names) == list(read.class_names or ())
    return found, read


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ({"train", "test"}, {"train": "train", "test": "test"}),
        ({"training", "valid", "testing"}, {"train": "training", "val": "valid", "test": "testing"}),
        ({"train", "val", "test", "other"}, {"train": "train", "val": "val", "test": "test"}),
        ({"train", "validation"}, {"train": "train", "test": "validation"}),
        ({"train"}, {"train": "train"}),
    ],
)
def test_splits_by_what_people_call_them(names, wanted):
    splits, doubts = match_splits(names)
    assert splits == wanted
    assert bool(doubts) == (splits.get("test") != "test" and "testing" not in names)


def test_without_a_training_split_there_is_no_data_set():
    assert match_splits({"test", "val"}) is None


@pytest.mark.parametrize("targets", ["labels", "targets"])
def test_safetensors(tmp_path, targets):
    values = torch.tensor([0, 3, 1]) if targets == "labels" else torch.randn(3)
    save_file({"images": torch.zeros(3, 1, 4, 6, dtype=torch.uint8), targets: values}, tmp_path / "train.safetensors")
    save_file(
        {"images": torch.zeros(1, 1, 4, 6, dtype=torch.uint8), targets: values[:1]}, tmp_path / "dev.safetensors"
    )
    found, _ = found_and_read(tmp_path, None)
    assert (found.format, dict(found.splits), dict(found.counts)) == (
        "safetensors",
        {"test": "dev"},
        {"train": 3, "test": 1},
    )
    assert (found.targets, found.n_classes) == (("labels", 4) if targets == "labels" else ("numbers", None))
    assert found.sizes == {(4, 6)}


def test_a_folder_a_class(tmp_path):
    images = pytest.importorskip("PIL.Image")
    for split, n in (("train", 3), ("val", 1)):
        for name in ("b", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                images.new("RGB", (8, 6)).save(tmp_path / split / name / f"{i}.jpg")
    found, read = found_and_read(tmp_path, None)
    assert (found.format, dict(found.splits), dict(found.counts)) == (
        "image-folder",
        {"test": "val"},
        {"train": 6, "test": 2},
    )
    assert found.sizes == {tuple(read.inputs.shape[2:])}


def test_images_of_the_last_class_are_looked_at_too(tmp_path):
    images = pytest.importorskip("PIL.Image")
    for name, size, n in (("a", (8, 8), 250), ("z", (9, 9), 1)):
        (tmp_path / "train" / name / "deeper").mkdir(parents=True)
        for i in range(n):
            images.new("RGB", size).save(tmp_path / "train" / name / "deeper" / f"{i}.png")
    found = recognise_data(tmp_path, None)
    assert (found.sizes, found.counts["train"]) == ({(8, 8), (9, 9)}, 251)


def test_texts(tmp_path):
    lines = [json.dumps({"text": "word", "label": colour}) for colour in COLOURS]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, "", ""]))
    (tmp_path / "test.jsonl").write_text(lines[0])
    found = recognise_data(tmp_path, None)
    assert (found.format, found.targets, dict(found.counts)) == ("jsonl", "labels", {"train": 6, "test": 1})
    assert found.class_names == ("blue", "green", "red")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a line to go on from"}\n')
    assert recognise_data(tmp_path, None).targets == "tokens"


class TestTables:
    """What the library `datasets` reads."""

    @pytest.fixture(autouse=True)
    def _needs_datasets(self):
        pytest.importorskip("datasets")

    def test_numbers_and_a_class_by_its_usual_name(self, tmp_path):
        for split in ("train", "test"):
            rows = [(i / 2, i, colour) for i, colour in enumerate(COLOURS)]
            write_csv(tmp_path / f"{split}.csv", [("width", "height", "class"), *rows])
        found, read = found_and_read(tmp_path, tmp_path / "cache")
        assert dict(found.columns) == {"inputs": ["width", "height"], "label": "class"}
        assert read.inputs.shape == (6, 2)

    def test_tables_parted_by_tabs(self, tmp_path):
        for split in ("train", "test"):
            (tmp_path / f"{split}.tsv").write_text("width\tclass\n" + "".join(f"{i}\t{i % 2}\n" for i in range(6)))
        found, _ = found_and_read(tmp_path, tmp_path / "cache")
        assert dict(found.columns) == {"inputs": ["width"], "label": "class"} and found.counts == dict(train=6, test=6)

    @pytest.mark.parametrize("val", ["val", "validation", "valid", "dev"])
    def test_a_usual_name_of_the_validation_split_is_not_stated(self, tmp_path, val):
        for split in ("train", val, "test"):
            write_csv(tmp_path / f"{split}.csv", [("width", "class"), *((i, i % 2) for i in range(6))])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert not found.splits and found.counts == dict(train=6, val=6, test=6)

    def test_the_only_table(self, tmp_path):
        write_csv(tmp_path / "reviews.csv", [("width", "class"), *((i, i % 2) for i in range(6))])
        found, _ = found_and_read(tmp_path, tmp_path / "cache")
        assert (found.splits, found.counts) == ({"train": "reviews"}, {"train": 6})
        (tmp_path / "reviews.csv").write_text("")
        assert recognise_data(tmp_path, tmp_path / "cache") is None

    def test_numbers_to_predict(self, tmp_path):
        write_csv(tmp_path / "train.csv", [("a", "b", "y"), *((i / 2, -i / 3, i * 1.5) for i in range(6))])
        found, read = found_and_read(tmp_path, tmp_path / "cache")
        assert found.targets == "numbers"
        assert dict(found.columns) == {"inputs": ["a", "b"], "target": "y"}
        assert read.targets.dtype == torch.float32

    def test_the_longest_texts_and_the_one_column_of_few_values(self, tmp_path):
        rows = [(f"id{i}", f"a sentence of some length {i}", i % 2) for i in range(8)]
        write_csv(tmp_path / "train.csv", [("key", "sentence", "mood"), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert dict(found.columns) == {"text": "sentence", "label": "mood"}
        assert (found.n_classes, found.choices) == (2, ())
        assert not any("texts" in doubt for doubt in found.doubts)  # keys are no texts

    def test_truths_are_labels(self, tmp_path):
        rows = [(f"a sentence of some length {i}", i % 3 == 0) for i in range(8)]
        write_csv(tmp_path / "train.csv", [("sentence", "is_spam"), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert dict(found.columns) == {"text": "sentence", "label": "is_spam"}
        assert (found.n_classes, found.targets) == (2, "labels")

    def test_texts_without_a_clear_label_are_a_doubt(self, tmp_path):
        rows = [(f"a sentence of some length {i}", i % 2, i % 3) for i in range(8)]
        write_csv(tmp_path / "train.csv", [("sentence", "one", "two"), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert found.targets == "tokens" and any("no label was found" in doubt for doubt in found.doubts)

    @pytest.mark.parametrize("names", [("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair")])
    def test_two_texts_that_one_label_is_for(self, tmp_path, names):
        rows = [(i, f"the first text {i}", f"a second and much longer text {i}", i % 3) for i in range(9)]
        write_csv(tmp_path / "train.csv", [("idx", *names, "label"), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        wanted = {part: name for part, name in zip(("text", "text_pair"), names, strict=True) if part != name}
        assert dict(found.columns) == wanted and not any("texts" in doubt for doubt in found.doubts)

    @pytest.mark.parametrize(
        "line",
        [
            {
                "messages": [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "yes"}],
                "category": "a",
            },
            {"conversations": [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "yes"}], "id": "x"},
            {"prompt": "is it?", "completion": "yes", "source": "web"},
            {"instruction": "is it?", "output": "it is", "input": "", "n": 3},
        ],
    )
    def test_what_a_language_model_is_asked_and_replies(self, tmp_path, line):
        (tmp_path / "train.jsonl").write_text(f"{json.dumps(line)}\n" * 8)
        found = recognise_data(tmp_path, tmp_path / "cache")
        names = [*line][: 1 if isinstance([*line.values()][0], list) else 2]
        roles = ["messages"] if len(names) == 1 else ["prompt", "completion"]
        assert (found.format, found.targets, found.doubts[1:]) == ("huggingface", "tokens", ())
        assert found.columns == dict(zip(roles, names, strict=True))

    def test_what_a_model_that_writes_is_to_reply_is_no_class(self, tmp_path):
        lines = [{"prompt": f"is it {i}?", "completion": "yes" if i % 2 else "no", "label": i % 2} for i in range(8)]
        (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found = recognise_data(tmp_path, tmp_path / "cache", for_writing=True)
        assert (found.columns, found.targets) == ({"prompt": "prompt", "completion": "completion"}, "tokens")
        assert found.n_classes is None and recognise_data(tmp_path, tmp_path / "cache").targets == "labels"
        (tmp_path / "train.jsonl").write_text('{"text": "so it is", "label": 1}\n' * 8)
        found = recognise_data(tmp_path, tmp_path / "cache", for_writing=True)
        assert (found.columns, found.targets) == ({}, "tokens")

    def test_an_input_beside_an_instruction_is_a_doubt(self, tmp_path):
        lines = [{"instruction": "is it?", "input": "a note" * (i == 7), "output": "it is"} for i in range(8)]
        (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert found.columns == {"prompt": "instruction", "completion": "output"}
        assert any("'instruction' and 'output' is read, and not input" in doubt for doubt in found.doubts)

    def test_numbers_to_predict_in_json_lines_are_a_regression(self, tmp_path):
        lines = [{"text": f"a text {i}", "label": i / 3 if i else 0} for i in range(8)]
        (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert (found.format, found.targets) == ("huggingface", "numbers")
        assert found.columns == {"target": "label"}

    @pytest.mark.parametrize(
        ("header", "n_numbers", "target", "has_choice"),
        [
            (("text", "score"), 1, "score", False),
            (("id", "text", "joy"), 1, "joy", False),
            (("text", "n", "score"), 1, "score", False),
            (("text", "one", "two"), 2, ["one", "two"], False),
            (("text", "one", "two"), 1, None, True),
            (("text", "label"), 2, None, True),
        ],
    )
    def test_the_numbers_that_a_regression_predicts(self, tmp_path, header, n_numbers, target, has_choice):
        lines = [{name: f"a text {i}" if name == "text" else i / 4 for name in header} for i in range(8)]
        (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found = recognise_data(tmp_path, tmp_path / "cache", n_numbers=n_numbers)
        assert (found.format, found.targets, found.columns.get("target")) == ("huggingface", "numbers", target)
        assert bool(found.choices) == has_choice

    @pytest.mark.parametrize("ending", ["PNG", "jp2"])
    def test_paths_of_images_are_images(self, tmp_path, ending):
        write_csv(tmp_path / "train.csv", [("path", "label"), *((f"pictures/{i}.{ending}", i % 2) for i in range(8))])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert found.columns == {"image": "path"} and found.n_classes == 2

    @pytest.mark.parametrize("label", ["label", "note"])
    def test_texts_that_are_not_read_are_named(self, tmp_path, label):
        rows = [(f"a title {i}", f"a much longer body of text {i}", i % 2 or "?" * i) for i in range(9)]
        write_csv(tmp_path / "train.csv", [("title", "body", label), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert found.columns["text"] == "body" and "text_pair" not in found.columns
        assert any("of the texts 'body' is read, and not title" in doubt for doubt in found.doubts)

    def test_two_columns_that_may_be_labels_are_a_choice(self, tmp_path):
        rows = [(i / 3, i % 2, i % 3) for i in range(9)]
        write_csv(tmp_path / "train.csv", [("x", "one", "two"), *rows])
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert len(found.choices) == 1 and "one (whole), two (whole)" in found.choices[0]

    def test_shards_of_parquet_and_the_usual_columns(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        (tmp_path / "data").mkdir()
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
        )
        table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
        for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
            table.to_parquet(tmp_path / "data" / f"{name}.parquet")
        found = recognise_data(tmp_path, tmp_path / "cache")
        assert (found.format, dict(found.columns), found.class_names) == ("huggingface", {}, ("n", "p"))
        assert (dict(found.splits), found.counts["train"]) == ({"test": "validation"}, 6)

    def test_a_saved_data_set_of_images(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        images = pytest.importorskip("PIL.Image")
        table = datasets.Dataset.from_dict({"picture": [images.new("L", (5, 7))] * 4, "fine": [0, 1, 2, 1]})
        datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "saved"))
        found, read = found_and_read(
            tmp_path / "saved", tmp_path / "cache", columns={"image": "picture", "label": "fine"}
        )
        assert dict(found.columns)["image"] == "picture"
        assert found.sizes == {tuple(read.inputs.shape[2:])}


@pytest.mark.parametrize(
    ("folders", "within", "splits", "lacks_train", "said"),
    [
        (["test/a", "test/b"], "", {}, True, "no train split was found"),
        (["valid/a", "valid/b"], "", {"test": "valid"}, True, "no train split was found"),
        (["a", "b"], "", {"train": "."}, False, "no folders of splits"),
        (["images/train/a/deeper", "images/train/b"], "images", {}, False, "one folder deeper, in 'images'"),
        (["images/a", "images/b"], "", {"train": "images"}, False, "'images' is taken for the train split"),
    ],
)
def test_images_without_a_train_folder(tmp_path, folders, within, splits, lacks_train, said):
    images = pytest.importorskip("PIL.Image")
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        images.new("RGB", (8, 6)).save(tmp_path / folder / "1.jpg")
    found = recognise_data(tmp_path, None)
    assert (found.format, found.within, found.splits, found.lacks_train) == (
        "image-folder",
        within,
        splits,
        lacks_train,
    )
    assert found.class_names == ("a", "b") and list(found.counts.values()) == [2]
    assert any(said in doubt for doubt in found.doubts)
    if not lacks_train:
        data = DataSpec(format="image-folder", root=str(tmp_path / within), splits=splits)
        assert len(read_dataset(data, "train", root=tmp_path / within, cache=None)) == 2


@pytest.mark.parametrize("name", ["test", "reviews"])
def test_texts_without_a_train_file(tmp_path, name):
    (tmp_path / f"{name}.jsonl").write_text('{"text": "word", "label": "up"}\n{"text": "so", "label": "down"}\n')
    found = recognise_data(tmp_path, None)
    is_test = name == "test"
    assert (found.format, found.n_classes, found.lacks_train) == ("jsonl", 2, is_test)
    assert (found.splits, found.counts) == (({}, {"test": 2}) if is_test else ({"train": name}, {"train": 2}))


def test_a_folder_with_nothing_known(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "train").mkdir()
    assert recognise_data(tmp_path, None) is None
