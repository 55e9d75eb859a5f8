"""What is checked of a blend that was written: its metadata, its tensors and its loss."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.outputs import Outputs
from glue_cli.workflows.evaluate import evaluate

STEPS = {"steps": 4, "validate_every": 2, "batch_size": 20, "lr": 0.2}  # of a short search


def glue_of(result):
    with safe_open(result["output"], "pt") as file:
        return json.loads(file.metadata()["glue"])


def mean(experts, alpha, name):
    return sum(a * load_file(path)[name].double() for a, path in zip(alpha, experts, strict=True))


def assert_is_mean(tensor, experts, alpha, name):
    torch.testing.assert_close(tensor.double(), mean(experts, alpha, name), rtol=1e-5, atol=1e-6)


def loss_of(spec, path, run):
    return evaluate(plan_evaluate(spec, [Path(path)], "val", {}, Outputs(None)), run).results[0].figures["loss"]
