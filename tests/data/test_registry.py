import importlib
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from glue_cli.data import FORMATS, check_format, normalisation, read_dataset
from glue_cli.data.dataset import Dataset
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.spec.schema import DataSpec


def test_importing_the_registry_does_not_import_torch():
    code = "import sys, glue_cli.data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_readers_other_than_svhn_do_without_numpy():
    code = """
import sys
sys.modules["numpy"] = None
import warnings; warnings.simplefilter("ignore")
import glue_cli.data.batches, glue_cli.data.formats.cifar10, glue_cli.data.formats.image_folder
import glue_cli.data.partition
import glue_cli.data.formats.safetensors_folder, glue_cli.data.formats.svhn
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_exists(name):
    module, function = check_format(name).reader.split(":")
    assert callable(getattr(importlib.import_module(f"glue_cli.data.{module}"), function))
    assert len(FORMATS[name].mean) == len(FORMATS[name].std)


def test_unknown_format_names_the_nearest_and_all():
    with pytest.raises(
        SpecError, match="no format 'cifar'; wanted one of cifar10, svhn, image-folder, safe"
    ) as caught:
        check_format("cifar")
    assert caught.value.hint == "did you mean 'cifar10'?"
    with pytest.raises(SpecError) as caught:
        check_format("parquet")
    assert "one of cifar10" in caught.value.hint


ON_DISK = [name for name in FORMATS if not name.startswith("python:")]


@pytest.mark.parametrize("name", ON_DISK)
def test_missing_root_names_the_path(tmp_path, name):
    data = DataSpec(format=name, root="nowhere")
    with pytest.raises(DataError, match="nowhere' does not exist; wanted a folder") as caught:
        read_dataset(data, "train", root=tmp_path / "nowhere")
    assert caught.value.hint == "check data.root in the spec"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file' is a file; wanted a folder"):
        read_dataset(data, "train", root=tmp_path / "file")


@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_names_the_path(tmp_path, name, split):
    with pytest.raises(DataError) as caught:
        read_dataset(DataSpec(format=name, root="."), split, root=tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint.startswith("check data.root in the spec")


def test_settings_that_a_format_does_not_heed_are_refused(tmp_path):
    with pytest.raises(SpecError, match="data.image_size means nothing to format 'cifar10': it is for 'image"):
        read_dataset(DataSpec(format="cifar10", root=".", image_size=8), "train", root=tmp_path)
    with pytest.raises(SpecError, match="'image-folder' and 'safetensors' and"):
        read_dataset(DataSpec(format="svhn", root=".", splits={"test": "extra"}), "train", root=tmp_path)


def test_only_a_function_of_the_user_s_needs_no_root():
    assert DataSpec(format="python:my:data").root == "" and DataSpec(format="jsonl", root="a").where == "a"
    assert DataSpec(format="python:my:data").where == "python:my:data"
    assert check_format("python:my:data") is FORMATS["python:MODULE:FUNCTION"]
    for given in ({}, {"root": ""}):
        with pytest.raises(ValidationError) as caught:
            DataSpec.model_validate({"format": "jsonl", **given})
        assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [("missing", ("root",))]


def test_columns_are_a_name_or_a_list():
    columns = {"inputs": ["a", "b"], "target": "y"}
    assert DataSpec(format="huggingface", root=".", columns=columns).columns == {"inputs": ["a", "b"], "target": ["y"]}
    with pytest.raises(ValidationError) as caught:
        DataSpec(format="huggingface", root=".", columns={"inputs": 3, "texts": "a"})
    assert {error["loc"][:3] for error in caught.value.errors()} == {
        ("columns", "inputs"),
        ("columns", "texts", "[key]"),
    }


def test_unknown_split_is_a_bug_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="'training'"):
        read_dataset(DataSpec(format="svhn", root="."), "training", root=tmp_path)


def test_normalisation_is_the_specs_then_the_formats_then_none():
    images = Dataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    floats = Dataset(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    assert normalisation(DataSpec(format="safetensors", root="."), images) == ((0.5,), (0.5,))
    assert normalisation(DataSpec(format="safetensors", root="."), floats) == (None, None)
    data = DataSpec(format="cifar10", root=".", mean=[0.0, 0.1, 0.2])
    assert normalisation(data, images) == ((0.0, 0.1, 0.2), FORMATS["cifar10"].std)


def test_normalisation_must_fit_the_channels(tmp_path):
    tensors = {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    save_file(tensors, tmp_path / "train.safetensors")
    with pytest.raises(SpecError, match="data.std: found 3 numbers, wanted 1"):
        read_dataset(DataSpec(format="safetensors", root=".", std=[1.0, 1.0, 1.0]), "train", root=tmp_path)
