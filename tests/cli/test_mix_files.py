"""What `glue mix` does with files alone: hashes, memory, shards, folders."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.cli.app import main
from glue_cli.foundation import regular_files


@pytest.fixture
def pair(tmp_path):
    for name, value in (("a", 1.0), ("b", 3.0)):
        save_file({"w": torch.full((70_000,), value)}, tmp_path / f"{name}.safetensors")
    return [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]


def test_hashes_can_be_left_out(pair, tmp_path, capsys):
    output = tmp_path / "ab.safetensors"
    assert main(["mix", "--alpha", "0.5,0.5", *pair, "-o", str(output), "--no-hash", "--json"]) == 0
    assert [expert["sha256"] for expert in json.loads(capsys.readouterr().out)["experts"]] == [None, None]
    assert load_file(output)["w"].unique().tolist() == [2.0]


@pytest.mark.parametrize("memory", ["1kB", "0.5MiB", "2GB", "300 MB", "4096B"])
def test_the_bytes_do_not_depend_on_the_memory(pair, tmp_path, memory):
    blend = ["mix", "--alpha", "0.25,0.75", *pair, "-q"]
    assert main([*blend, "-o", str(tmp_path / "usual.safetensors")]) == 0
    assert main([*blend, "-o", str(tmp_path / "other.safetensors"), "--memory", memory]) == 0
    assert (tmp_path / "other.safetensors").read_bytes() == (tmp_path / "usual.safetensors").read_bytes()


@pytest.mark.parametrize("memory", ["", "much", "0B", "-1MB", "1TB", "5"])
def test_a_memory_that_is_no_size_is_refused(pair, tmp_path, capsys, memory):
    assert main(["mix", "--method", "uniform", *pair, "-o", str(tmp_path / "ab.safetensors"), "--memory", memory]) == 2
    assert "for example --memory 192MiB" in capsys.readouterr().err


@pytest.fixture
def folders(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(1000)}, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    return [str(tmp_path / "first"), str(tmp_path / "second")]


def test_folders_in_a_folder_out_in_shards(folders, tmp_path, capsys):
    blend = ["mix", "--method", "uniform", *folders, "-o", str(tmp_path / "prior")]
    assert main([*blend, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "prior")
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert main(blend) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*blend, "--force", "--max-shard-size", "1kB"]) == 0
    assert main(["mix", "--alpha", "1", str(tmp_path / "prior"), "-o", str(tmp_path / "one.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "one.safetensors")["w"], torch.ones(1000))


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_experts_folder_is_never_written_over(folders, tmp_path, capsys, force):
    before = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert main(["mix", "--method", "uniform", *folders, "-o", folders[0], "--max-shard-size", "1kB", *force]) == 2
    assert "is also an input" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == before


def test_an_expert_in_the_output_folder_is_never_deleted(folders, pair, tmp_path, capsys):
    first, second = Path(folders[0]), tmp_path / "second"
    one = second / "model-00001-of-00002.safetensors"  # which a blend of another size would be read in place of
    os.replace(second / "model.safetensors", one)
    backup = second / "model-b.safetensors"
    shutil.copy(one, backup)
    assert main(["mix", "--method", "uniform", str(first), str(one), "-o", str(second), "--force"]) == 2
    assert "model-00001-of-00002.safetensors' is also an input" in capsys.readouterr().err
    assert one.exists() and not (second / "model.safetensors").exists()
    one.unlink()
    assert main(["mix", "--method", "uniform", str(first), str(backup), "-o", str(second), "--force"]) == 0
    assert backup.exists() and (second / "model.safetensors").exists()


def test_a_configuration_that_cannot_be_read_is_named(folders, tmp_path, capsys, monkeypatch):
    regular = regular_files.regular

    def refuse(path, flags=0):
        if str(path).endswith("config.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return regular(path, flags)

    monkeypatch.setattr("glue_cli.foundation.regular_files.regular", refuse)  # root may read everything
    assert main(["mix", "--method", "uniform", *folders, "-o", str(tmp_path / "prior")]) == 3
    assert (
        "first/config.json' cannot be read: Permission denied" in capsys.readouterr().err
        and not (tmp_path / "prior").exists()
    )


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_folders_configuration_says_the_dtype_that_is_written(folders, tmp_path, key):
    config = {key: "bfloat16", "text_config": {key: "bfloat16", "width": 4}, "vocab_size": 3}
    (Path(folders[0]) / "config.json").write_text(json.dumps(config))
    blend = ["mix", "--method", "uniform", *folders, "-q"]
    assert main([*blend, "-o", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    wanted = {key: "float16", "text_config": {key: "float16", "width": 4}, "vocab_size": 3}
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == wanted
    assert load_file(tmp_path / "half" / "model.safetensors")["w"].dtype == torch.float16
    assert main([*blend, "-o", str(tmp_path / "same")]) == 0
    wanted = {key: "float32", "text_config": {key: "float32", "width": 4}, "vocab_size": 3}
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == wanted  # whatever the experts' say


def test_an_index_that_is_read_is_never_written_over(folders, tmp_path, capsys):
    sharded = str(tmp_path / "sharded.safetensors.index.json")
    assert main(["mix", "--method", "uniform", *folders, "-o", sharded]) == 0
    assert main(["mix", "--method", "uniform", sharded, sharded, "-o", sharded, "--force"]) == 2
    assert "is also an input" in capsys.readouterr().err
