import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.data import read_dataset
from glue_cli.foundation.errors import DataError
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="safetensors", root=".")
IMAGES = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
LABELS = torch.tensor([1, 0])


def test_images_and_labels(tmp_path):
    save_file(
        {"images": IMAGES, "labels": LABELS}, tmp_path / "train.safetensors", {"class_names": '["cat", "Hündin"]'}
    )
    dataset = read_dataset(DATA, "train", root=tmp_path)
    assert torch.equal(dataset.inputs, IMAGES) and torch.equal(dataset.targets, LABELS)
    assert dataset.class_names == ("cat", "Hündin")
    assert read_dataset(DATA, "val", root=tmp_path) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inputs_and_targets_become_float32(tmp_path, dtype):
    inputs, targets = torch.tensor([[1.5, -2.0], [0.25, 8.0]]), torch.tensor([0.5, -4.0])
    save_file({"inputs": inputs.to(dtype), "targets": targets.to(dtype)}, tmp_path / "val.safetensors")
    dataset = read_dataset(DATA, "val", root=tmp_path)
    assert dataset.inputs.dtype == dataset.targets.dtype == torch.float32
    assert torch.equal(dataset.inputs, inputs) and torch.equal(dataset.targets, targets)
    assert dataset.class_names is None and not dataset.has_images


def test_splits_name_the_files(tmp_path):
    save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "val.safetensors")
    data = DataSpec(format="safetensors", root=".", splits={"test": "val"})
    assert len(read_dataset(data, "test", root=tmp_path)) == 2
    assert read_dataset(data, "val", root=tmp_path) is None
    with pytest.raises(DataError, match="dev.safetensors' is missing"):
        read_dataset(DataSpec(format="safetensors", root=".", splits={"val": "dev"}), "val", root=tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels": LABELS}, "found neither of the tensors 'images' and 'inputs'"),
        ({"images": IMAGES, "inputs": torch.ones(2), "labels": LABELS}, "found both of the tensors 'images' and"),
        ({"images": IMAGES}, "found neither of the tensors 'labels' and 'targets'"),
        ({"images": IMAGES.float(), "labels": LABELS}, "'images' is float32, wanted uint8"),
        ({"images": IMAGES[0].clone(), "labels": LABELS}, r"'images' has shape \[3, 4, 4\], wanted \[N, C, H, W\]"),
        ({"inputs": IMAGES, "labels": LABELS}, "'inputs' is uint8, wanted float32 or float16 or"),
        ({"images": IMAGES, "labels": LABELS.int()}, "'labels' is int32, wanted int64"),
        ({"images": IMAGES, "labels": LABELS[:, None].clone()}, r"'labels' has shape \[2, 1\], wanted \[N\]"),
        ({"images": IMAGES, "targets": torch.tensor(1.0)}, "'targets' is a single number"),
        ({"images": IMAGES, "labels": torch.tensor([1])}, "'labels' has 1 examples, wanted 2, as 'images' has"),
        (
            {"images": IMAGES, "labels": torch.tensor([0, -1])},
            r"'labels' is -1 in example 1 \(from 0\), wanted 0 or m",
        ),
        ({"images": IMAGES[:0].clone(), "labels": LABELS[:0].clone()}, "'images' holds no example"),
        ({"inputs": torch.tensor([[1.0], [torch.nan]]), "labels": LABELS}, "'inputs' is NaN or infinite in example 1"),
        ({"images": IMAGES, "targets": torch.tensor([torch.inf, 0])}, "'targets' is NaN or infinite in example 0"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "test.safetensors")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(DATA, "test", root=tmp_path)
    assert str(tmp_path / "test.safetensors") in caught.value.message


def test_labels_must_have_a_class_name(tmp_path):
    tensors = {"images": IMAGES, "labels": torch.tensor([1, 2])}
    save_file(tensors, tmp_path / "train.safetensors", {"class_names": json.dumps(["a", "b"])})
    with pytest.raises(DataError, match=r"'labels' is 2 in example 1 \(from 0\), wanted 0 to 1, as there are 2 class"):
        read_dataset(DATA, "train", root=tmp_path)


@pytest.mark.parametrize("names", ["cat,dog", "[1, 2]", "[" * 100_000, '{"0": "cat"}'])
def test_class_names_must_be_a_list(tmp_path, names):
    save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "train.safetensors", {"class_names": names})
    with pytest.raises(DataError, match="'class_names' is not a JSON list of strings"):
        read_dataset(DATA, "train", root=tmp_path)


@pytest.mark.parametrize("n_bytes", [5, 50, -1])
def test_truncated_file_is_named(tmp_path, n_bytes):
    path = tmp_path / "train.safetensors"
    save_file({"images": IMAGES, "labels": LABELS}, path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match="train.safetensors' is cut short"):
        read_dataset(DATA, "train", root=tmp_path)


def test_other_file_is_named(tmp_path):
    (tmp_path / "train.safetensors").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(DataError, match="train.safetensors' is cut short, or was not saved by torch.save"):
        read_dataset(DATA, "train", root=tmp_path)


def test_the_digits_of_the_quick_start():
    root = Path(__file__).parents[3] / "examples" / "digits"
    train, test = (read_dataset(DATA, split, root=root) for split in ("train", "test"))
    assert train.inputs.shape == (1397, 1, 8, 8) and test.inputs.shape == (400, 1, 8, 8)
    assert train.class_names == test.class_names == tuple("0123456789")
    assert train.inputs.max() == 255 and len(set(train.inputs.flatten().tolist())) == 17  # the 17 grey levels
    assert (train.targets.bincount() + test.targets.bincount()).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in root.glob("*.safetensors")) < 131_072


def save_named(path, labels, *names):
    tensors = {"images": IMAGES[: len(labels)].clone(), "labels": torch.tensor(labels)}
    save_file(tensors, path, {"class_names": json.dumps(names)} if names else None)


def test_labels_are_numbered_as_in_train_in_every_split(tmp_path):
    save_named(tmp_path / "train.safetensors", [0, 1], "cat", "dog", "ant")
    save_named(tmp_path / "test.safetensors", [0, 1], "ant", "cat")
    test = read_dataset(DATA, "test", root=tmp_path)
    assert test.targets.tolist() == [2, 0] and test.class_names == ("cat", "dog", "ant")
    save_named(tmp_path / "test.safetensors", [1], "ant", "yak")
    with pytest.raises(DataError, match="the train split does not have: yak") as caught:
        read_dataset(DATA, "test", root=tmp_path)
    assert [item.partition(": ")[2] for item in caught.value.items] == ["ant, yak", "cat, dog, ant"]


def test_a_split_without_names_or_without_a_train_split_counts_as_it_is(tmp_path):
    save_named(tmp_path / "test.safetensors", [0, 1], "ant", "cat")
    assert read_dataset(DATA, "test", root=tmp_path).class_names == ("ant", "cat")
    save_named(tmp_path / "train.safetensors", [0, 1])
    assert read_dataset(DATA, "test", root=tmp_path).targets.tolist() == [0, 1]
    save_named(tmp_path / "train.safetensors", [0, 1], "cat", "ant")
    save_named(tmp_path / "test.safetensors", [0, 1])
    test = read_dataset(DATA, "test", root=tmp_path)
    assert test.targets.tolist() == [0, 1] and test.class_names == ("cat", "ant")


def test_names_in_a_damaged_train_split_are_refused(tmp_path):
    save_named(tmp_path / "test.safetensors", [0, 1], "ant", "cat")
    (tmp_path / "train.safetensors").write_bytes(b"no header")
    with pytest.raises(DataError, match="train.safetensors"):
        read_dataset(DATA, "test", root=tmp_path)
