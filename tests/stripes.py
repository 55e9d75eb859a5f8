"""A data set of noisy stripes, a spec for it, and the surroundings of a run."""

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.foundation.run import Run
from glue_cli.spec.schema import Spec

N_CLASSES = 4


def stripes(n, seed):
    """Draw images [n, 1, 8, 8] whose bright row tells the label."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % N_CLASSES
    images = torch.randint(0, 120, (n, 1, 8, 8), generator=draws, dtype=torch.uint8)
    images[torch.arange(n), 0, 2 * labels] += 120
    return {"images": images, "labels": labels}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    save_file(stripes(240, 0), folder / "train.safetensors")
    save_file(stripes(40, 1), folder / "test.safetensors")
    return folder


@pytest.fixture
def make_spec(data, tmp_path):
    """Build a spec from sections that differ from the usual."""

    def make(**sections):
        usual = {
            "model": {"arch": "cnn", "args": {"num_classes": N_CLASSES, "width": 4}},
            "data": {"format": "safetensors", "root": "data", "target": {"train": 80, "val": 40}},
            "experts": {"count": 3, "size": 60, "dirichlet": 1.0},
            "train": {"epochs": 2, "batch_size": 20, "lr": 0.02},
            "mix": {"steps": 6, "validate_every": 2, "batch_size": 20},
            "finetune": {"epochs": 2, "batch_size": 20, "lr": 0.02},
            "precision": "fp32",
        }
        return Spec.model_validate({**usual, **sections}).located_in(tmp_path)

    return make


@pytest.fixture
def spec(make_spec):
    return make_spec()


@pytest.fixture
def events():
    return []


@pytest.fixture
def run(events, tmp_path):
    return Run(device="cpu", cache=tmp_path / "cache", progress=events.append)
