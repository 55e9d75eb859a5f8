import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.destination import plan_destination
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

INDEX = json.dumps({"weight_map": {"a": "one.safetensors"}})


@pytest.fixture
def elsewhere(tmp_path):
    """A file of tensors outside the folder `model`, which has a configuration."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, tmp_path / "elsewhere.safetensors")
    return tmp_path / "elsewhere.safetensors"


def test_weights_that_are_a_link_out_of_the_folder(elsewhere, tmp_path):
    (tmp_path / "model/model.safetensors").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="has links that lead out of it") as caught:
        read_checkpoint(tmp_path / "model")
    assert caught.value.items == (f"'{tmp_path / 'model/model.safetensors'}' is '{elsewhere}'",)
    assert read_checkpoint(tmp_path / "model/model.safetensors").n_bytes == 8  # which the user named


@pytest.mark.parametrize("through_folder", [False, True])
def test_a_shard_that_is_a_link_out_of_the_folder(elsewhere, tmp_path, through_folder):
    if through_folder:
        (tmp_path / "model/sub").symlink_to(tmp_path)
        shard = "sub/elsewhere.safetensors"
    else:
        (tmp_path / "model/one.safetensors").symlink_to("../elsewhere.safetensors")
        shard = "one.safetensors"
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    for path in (index, index.parent):
        with pytest.raises(CheckpointError, match="has links that lead out of it"):
            read_checkpoint(path)


@pytest.mark.parametrize("is_absolute", [False, True])
def test_an_index_that_names_a_file_out_of_its_folder(elsewhere, tmp_path, is_absolute):
    shard = str(elsewhere) if is_absolute else "../elsewhere.safetensors"
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    for path in (index, index.parent):
        with pytest.raises(CheckpointError, match="names shards outside its own folder") as caught:
            read_checkpoint(path)
        assert caught.value.items == (shard,)


def test_links_within_the_folder_are_followed(elsewhere, tmp_path):
    elsewhere.rename(tmp_path / "model/weights-of-today.safetensors")
    (tmp_path / "model/model.safetensors").symlink_to("weights-of-today.safetensors")
    (tmp_path / "named").symlink_to(tmp_path / "model")
    assert read_checkpoint(tmp_path / "model").n_bytes == read_checkpoint(tmp_path / "named").n_bytes == 8


def test_the_cache_of_the_hub_is_read(elsewhere, tmp_path):
    home = tmp_path / "models--a--b"
    snapshot = home / "snapshots/0123abcd"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for name, content in (
        ("one.safetensors", elsewhere.read_bytes()),
        ("model.safetensors.index.json", INDEX.encode()),
    ):
        (home / "blobs" / f"hash-of-{name}").write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/hash-of-{name}")
    assert read_checkpoint(snapshot).n_bytes == read_checkpoint(snapshot / "model.safetensors.index.json").n_bytes == 8
    (snapshot / "one.safetensors").unlink()
    (snapshot / "one.safetensors").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="has links that lead out of it"):
        read_checkpoint(snapshot)


def test_what_would_be_copied_along_lies_in_the_folder(elsewhere, tmp_path):
    (tmp_path / "secret.txt").write_text("a key")
    (tmp_path / "model/vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="has links that lead out of it"):
        plan_destination(tmp_path / "out", [("a", "F32", (2,))], model_folder=tmp_path / "model")
    (tmp_path / "model/vocab.txt").unlink()
    copies = plan_destination(tmp_path / "out", [("a", "F32", (2,))], model_folder=tmp_path / "model").companions
    assert [copy.name for _, copy in copies] == ["config.json"]
