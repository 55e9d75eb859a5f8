"""A search whose experts are streamed from disk, beside the same search in memory."""

from pathlib import Path

import pytest
from safetensors.torch import save_file


@pytest.mark.parametrize("how", [["spsa"], ["spsa", "--set", "mix.search=plain"], ["cmaes"], ["greedy"]])
def test_the_prior_is_that_of_a_search_in_memory(here, glue, experts, how):
    results = []
    for bank in ("device", "streamed"):
        command = ["mix", "--method", *how, *experts, "--budget", 40, "--bank", bank, "-o", "prior.safetensors"]
        results.append((glue(*command, "--force", "--json", code=0).json, Path("prior.safetensors").read_bytes()))
    (resident, blend), (streamed, same_blend) = results
    assert streamed["alpha"] == resident["alpha"] and streamed["loss"] == resident["loss"]
    assert same_blend == blend


def test_memory_smaller_than_the_experts_makes_it_stream(here, glue, experts):
    limit = f"{sum(Path(expert).stat().st_size for expert in experts) - 5000}B"
    answer = glue("mix", "--method", "spsa", *experts, "--budget", 20, "--memory", limit, "--json", code=0)
    assert "streamed from disk block by block" in answer.err


def test_a_block_that_does_not_fit_is_refused(here, glue, experts):
    answer = glue("mix", "--method", "spsa", *experts, "--memory", "1kB", code=5)
    assert "do not fit into 1.0 kB" in answer.err and answer.err.splitlines()[-1].startswith("hint: --memory 1MiB")


def test_a_gradient_is_refused(here, glue, experts):
    command = ["mix", "--method", "fullgrad", *experts, "--bank", "streamed"]
    glue(*command).refused(2, "fullgrad", "--method spsa", "--bank device takes")


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
    assert err.count("the search will take about") == 1 and "% of that waiting for the disk" in err
    assert "the search will take about" not in said("device")
