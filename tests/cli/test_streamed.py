"""A search whose experts are streamed from disk, beside the same search in memory."""

from pathlib import Path

import pytest


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
