"""A search whose experts are streamed from disk, beside the same search in memory."""

import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glue_cli.workflows import evaluate, streaming


@pytest.mark.parametrize("how", [["spsa"], ["spsa", "--set", "mix.search=plain"], ["cmaes"], ["greedy"]])
def test_the_prior_is_that_of_a_search_in_memory(here, glue, experts, how):
    results = []
    for bank in ("device", "blocks", "streamed"):
        command = ["mix", "--method", *how, *experts, "--budget", 40, "--bank", bank, "-o", "prior.safetensors"]
        results.append((glue(*command, "--force", "--json", code=0).json, Path("prior.safetensors").read_bytes()))
    resident, blend = results[0]
    for found, same_blend in results[1:]:
        assert found["alpha"] == resident["alpha"] and found["loss"] == resident["loss"]
        assert same_blend == blend


@pytest.mark.parametrize("batchnorm", ["average", "auto"])
def test_proxy_evaluates_the_experts_wherever_they_are(here, glue, experts, batchnorm):
    results, losses = [], []
    for bank in ("device", "blocks", "disk", "streamed"):
        command = ["mix", "--method", "proxy", *experts, "--bank", bank, "--batchnorm", batchnorm, "--force", "--json"]
        answer = glue(*command, "-o", "prior.safetensors", "--set", "precision=fp32", code=0).json
        with safe_open("prior.safetensors", "pt") as file:
            said = json.loads(file.metadata()["glue"])
        measured = said.pop("measured", {"val": 0.0})
        losses.append(measured.pop("val"))  # its last digits depend on where blends are made
        content = {name: tensor.tolist() for name, tensor in load_file("prior.safetensors").items()}
        results.append((answer["val_accuracies"], answer["alpha"], said, measured, content))
    assert all(found == results[0] for found in results[1:])
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    evaluated = glue("evaluate", *experts, "--split", "val", "--json", code=0).json["results"]
    if batchnorm == "average":
        assert results[0][0] == [row["accuracy"] for row in evaluated]


def test_memory_smaller_than_the_experts_makes_it_stream(here, glue, experts):
    limit = f"{sum(Path(expert).stat().st_size for expert in experts) - 5000}B"
    answer = glue("mix", "--method", "spsa", *experts, "--budget", 20, "--memory", limit, "--json", code=0)
    assert "streamed from disk block by block" in answer.err


def test_a_block_that_does_not_fit_is_refused_with_what_would(here, glue, experts):
    command = ["mix", "--method", "spsa", *experts, "--budget", 20]
    answer = glue(*command, "--memory", "1kB", code=5)
    assert "do not fit into 1.0 kB" in answer.err and answer.err.splitlines()[-1].startswith("hint: --memory 1MiB")
    glue(*command, "--memory", "1MiB", "--bank", "streamed", "-q", code=0)


def test_numba_is_named_where_a_large_model_lacks_it(here, glue, experts, monkeypatch):
    command = ["mix", "--method", "proxy", *experts, "--bank", "streamed", "--force"]
    monkeypatch.setattr("glue_cli.search.bank.matrix.is_available", lambda: False)
    assert "numba" not in glue(*command, code=0).err
    monkeypatch.setattr("glue_cli.search.bank.matrix._FUSED_COLUMNS", 1)
    assert glue(*command, code=0).err.count("pip install 'glue-cli[fast]'") == 1


def test_a_gradient_is_refused(here, glue, experts):
    command = ["mix", "--method", "fullgrad", *experts, "--bank", "streamed"]
    glue(*command).refused(2, "fullgrad", "--method spsa", "--bank device takes")


MEASURED = """
from pathlib import Path
import torch
from glue_cli.cli.app import main

torch.set_num_threads(1)

def mix(method, width, bank, memory):
    experts = [f"{width}-{k}.safetensors" for k in range(4)]
    options = ["--budget", "20"] if method == "spsa" else []
    options += ["--bank", bank, "--memory", memory, "--force", "-o", "prior.safetensors", "-q"]
    model = ["--set", "model.arch=python:wide:net", "--set", f"model.args={{width: {width}}}"]
    options += ["--no-hash", "--set", "precision=fp32"]
    assert main(["mix", "--method", method, *experts, *options, *model]) == 0

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) // 1024

def grown(method, bank, memory):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    mix(method, 1024, bank, memory)
    return resident("VmHWM") - before

for method in ("proxy", "spsa"):
    mix(method, 32, "streamed", "64MiB")
print(*(grown(method, "streamed", "40MiB") for method in ("proxy", "spsa")), grown("spsa", "device", "2GiB"))
"""

WIDE = """
from torch import nn

def net(width):
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(16)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *layers, nn.Linear(width, 10))
"""


@pytest.mark.parametrize("is_streamed", [False, True])
def test_of_several_checkpoints_one_is_in_memory_at_a_time(here, glue, experts, monkeypatch, is_streamed):
    living = []

    def is_held(made):
        return made is not None and getattr(made, "_blender", made) is not None

    def watched(make):
        def call(*arguments, **named):
            assert not any(is_held(each()) for each in living)
            made = make(*arguments, **named)
            living.append(weakref.ref(made))
            return made

        return call

    if is_streamed:
        monkeypatch.setattr(streaming, "usable_memory", lambda device: Path(experts[0]).stat().st_size)
        monkeypatch.setattr(streaming, "Engine", watched(streaming.Engine))
    else:
        monkeypatch.setattr(evaluate, "load_model", watched(evaluate.load_model))
    figures = glue("evaluate", *experts, "--precision", "fp32", "--json", code=0).json["results"]
    assert len(figures) == len(living) == len(experts)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be measured anew on Linux alone")
def test_the_memory_of_a_whole_search_is_that_of_a_few_blocks(here):
    """Four experts of 64 MiB: in memory they alone take 256."""
    Path("wide.py").write_text(WIDE)
    names = {}
    exec(WIDE, names)
    for width in (32, 1024):
        for k in range(4):
            save_file(names["net"](width).state_dict(), f"{width}-{k}.safetensors")
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}."}
    process = [sys.executable, "-c", MEASURED]
    done = subprocess.run(process, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    *streamed, in_memory = map(int, done.stdout.splitlines()[-1].split())
    assert (
        max(streamed) < 200
    )  # the limit of 40, and what does not depend on it: activations, a file's pages, fragments
    assert in_memory > 4 * 64


DEEP = """
from torch import nn

def net():
    layers = (nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6))
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
"""


def test_a_checkpoint_that_does_not_fit_is_evaluated_all_the_same(here, glue, monkeypatch):
    Path("deep.py").write_text(DEEP)
    names = {}
    exec(DEEP, names)
    checkpoints = ["one.safetensors", "two.safetensors"]
    for path in checkpoints:
        save_file(names["net"]().state_dict(), path)
    command = ["evaluate", *checkpoints, "--split", "val", "--json"]
    command += ["--set", "model.arch=python:deep:net", "--set", "model.args={}"]
    whole = glue(*command, code=0).json
    monkeypatch.setattr("glue_cli.workflows.streaming.usable_memory", lambda device: 60_000)
    answer = glue(*command, code=0)
    assert answer.json == whole
    assert answer.err.count("takes 204.9 kB in memory: streamed from disk block by block") == 2
    monkeypatch.setattr("glue_cli.workflows.streaming.usable_memory", lambda device: 1000)
    assert "do not fit into 1.0 kB" in glue(*command, code=5).err


def test_a_slow_search_says_how_long_it_will_take(here, glue, experts, monkeypatch):
    def said(bank):
        return glue(
            "mix", "--method", "spsa", *experts, "--budget", 40, "--bank", bank, "--json", "--force", code=0
        ).err

    assert "the search will take about" not in said("streamed")
    monkeypatch.setattr("glue_cli.workflows.mix.pace._LONG_S", 0)
    err = said("streamed")
    assert err.count("the search will take about") == 1
    assert int(re.search(r"(\d+)% of that waiting for the experts", err)[1]) <= 100
    assert "the search will take about" not in said("device")
