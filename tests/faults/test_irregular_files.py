"""FIFOs and devices where a file is wanted: refused at once, whoever wants to read them, and never waited for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SPEC = """\
model: {arch: cnn, args: {num_classes: 10, in_channels: 1, width: 4}}
data: {format: FORMAT, root: data, target: {train: 20, val: 20}}
"""


@pytest.fixture
def refused(tmp_path):
    """Run glue in a folder; it has to refuse at once, with exit 2 or 3, and name what it refuses."""

    def run(*arguments, named):
        done = subprocess.run(
            [sys.executable, "-m", "glue_cli", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (2, 3), done.stderr
        assert "Traceback" not in done.stderr and named in done.stderr, done.stderr
        assert not (tmp_path / "prior.safetensors").exists()

    return run


def put_odd(path, kind="fifo"):
    """Put a FIFO without a writer, or a link to a device that never ends, at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")


@pytest.fixture
def expert(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "good.safetensors", {"format": "pt"})
    return "good.safetensors"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("odd.safetensors", "fifo"),
        ("odd.safetensors", "device"),
        ("odd.pt", "fifo"),
        ("odd.safetensors.index.json", "device"),
        ("model/model.safetensors", "fifo"),
    ],
)
def test_as_an_expert(refused, expert, tmp_path, name, kind):
    put_odd(tmp_path / name, kind)
    path = name.partition("/")[0]
    refused("mix", "--alpha", "0.5,0.5", expert, path, named="odd" if "odd" in name else "model")


def test_as_a_shard(refused, expert, tmp_path):
    put_odd(tmp_path / "one.safetensors")
    index = {"weight_map": {"w": "one.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    refused("mix", "--alpha", "0.5,0.5", expert, "x.safetensors.index.json", named="one.safetensors")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_as_a_spec_or_a_report_s_source(refused, expert, tmp_path, kind):
    put_odd(tmp_path / "glue.yaml", kind)
    refused("mix", "--method", "spsa", expert, expert, named="glue.yaml")
    put_odd(tmp_path / "result.json", kind)
    refused("report", "result.json", named="result.json")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("safetensors", "train.safetensors"),
        ("jsonl", "train.jsonl"),
        ("cifar10", "data_batch_1.bin"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_as_a_data_file(refused, tmp_path, form, name):
    (tmp_path / "glue.yaml").write_text(SPEC.replace("FORMAT", form))
    put_odd(tmp_path / "data" / name)
    if form == "safetensors":
        shutil.copy(DIGITS / "test.safetensors", tmp_path / "data")
    refused("finetune", "--from-scratch", named="data")
