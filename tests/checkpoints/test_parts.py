"""Modules in subfolders, read as files of one checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.parts import add_parts, without_parts
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError

LINEAR = "torch.nn.Linear"


@pytest.fixture
def make(tmp_path):
    """Write a model's folder with parts of a tensor each; modules are listed where there are any."""

    def make(name, parts, modules=None, **configs):
        for k, part in enumerate(("", *parts)):
            (tmp_path / name / part).mkdir(parents=True)
            save_file({"w": torch.full((2,), float(k))}, tmp_path / name / part / "model.safetensors")
        if modules is not None:
            listed = [{"idx": i, "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
            (tmp_path / name / "modules.json").write_text(json.dumps(listed))
        for part, config in configs.items():
            (tmp_path / name / part / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    return make


def read(*folders):
    return [read_checkpoint(folder) for folder in folders]


def test_tensors_are_named_and_read_by_their_subfolder(make):
    (expert, _), parts = add_parts(read(make("x", ["b", "a/deep"]), make("y", ["b", "a/deep"])))
    assert [part.file for part in parts] == ["a/deep/model.safetensors", "b/model.safetensors"]
    assert {name: tensor[0].item() for name, tensor in read_tensors(expert).items()} == {
        "w": 0,
        "b/w": 1,
        "a/deep/w": 2,
    }
    assert len(expert.files) == len(expert.stamps) == 3
    assert {*without_parts(expert, parts).entries} == {"w"}


def test_files_of_old_are_read_and_written_anew(make):
    x, y = make("x", ["b"]), make("y", ["b"])
    (y / "b/model.safetensors").unlink()
    torch.save({"w": torch.full((2,), 5.0)}, y / "b/pytorch_model.bin")
    (_, expert), parts = add_parts(read(x, y))
    assert read_tensors(expert, ["b/w"])["b/w"].tolist() == [5, 5] and parts[0].file == "b/model.safetensors"


def test_files_have_no_parts(make):
    folder = make("x", ["b"])
    (expert, _), parts = add_parts(read(folder / "model.safetensors", folder))
    assert not parts and {*expert.entries} == {"w"}


def test_an_expert_within_another_is_no_part(make, tmp_path):
    outer, inner = make("x", ["y"]), tmp_path / "x/y"
    experts, parts = add_parts(read(outer, inner))
    assert not parts and all({*expert.entries} == {"w"} for expert in experts)


def test_a_part_that_one_lacks(make):
    x, y = make("x", ["b"]), make("y", ["b", "c"])
    with pytest.raises(CheckpointError, match="lack modules") as caught:
        add_parts(read(x, y))
    assert caught.value.items == (f"{x}: 'c'",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"modules": [("", LINEAR), ("b", LINEAR)]}, {"modules": [("b", LINEAR), ("", LINEAR)]}),
        ({"modules": [("", LINEAR), ("b", LINEAR)]}, {"modules": [("", LINEAR), ("b", "torch.nn.Bilinear")]}),
        ({"modules": [("", LINEAR), ("b", LINEAR)]}, {}),
        ({"b": {"activation": "tanh"}}, {"b": {"activation": "relu"}}),
        ({"b": {"activation": "tanh"}}, {}),
    ],
)
def test_modules_that_compute_something_else(make, one, other):
    x, y = make("x", ["b"], **one), make("y", ["b"], **other)
    with pytest.raises(CheckpointError, match="compute different things") as caught:
        add_parts(read(x, y))
    assert len(caught.value.items) == 1 and str(y) in caught.value.items[0]


def test_a_part_without_tensors(make):
    folder = make("x", ["b"])
    save_file({}, folder / "b/model.safetensors")
    with pytest.raises(CheckpointError, match="x/b' has no tensors"):
        add_parts(read(folder))


def test_how_a_module_was_saved_does_not_matter(make):
    x, y = make("x", ["b"], b={"n": 1, "dtype": "float32"}), make("y", ["b"], b={"n": 1, "transformers_version": "5"})
    assert len(add_parts(read(x, y))[1]) == 1
