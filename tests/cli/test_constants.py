"""Constants and copies among the weights, from a blend on disk to a search, an evaluation and a finetuning."""

import pytest
import torch
from safetensors.torch import load_file, save_file

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10)
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))
        self.register_buffer("freqs_cis", torch.polar(torch.ones(8), torch.arange(8.0)))

    def forward(self, images):
        scores = self.norm(self.embed(images.flatten(1)))
        weights = torch.softmax(scores[:, None] + self.mask, -1)
        return self.head((weights @ scores[..., None])[..., 0] * self.freqs_cis.real)

def build():
    return Net()
"""
OF_NET = ("--set", "model={arch: 'python:own_net:build'}")


@pytest.fixture
def masked(here, glue):
    """Three experts with a mask of infinities and complex numbers; the second has no counter of batches."""
    (here / "own_net.py").write_text(NET)
    for k in range(3):
        glue("train-expert", "--expert", k, *OF_NET, "-o", f"{k}.safetensors", "-q", code=0)
    kept = {name: t for name, t in load_file("1.safetensors").items() if "tracked" not in name}
    save_file(kept, "1.safetensors")
    return [f"{k}.safetensors" for k in range(3)]


@pytest.mark.parametrize("how", [["spsa"], ["fullgrad"], ["spsa", "--bank", "disk"], ["greedy"]])
def test_a_search_over_experts_with_constants(glue, masked, how):
    found = glue("mix", "--method", *how, *masked, *OF_NET, "--json", code=0).json
    wanted, blend = load_file(masked[0]), load_file("prior.safetensors")
    assert blend.keys() == wanted.keys()
    assert torch.equal(blend["mask"], wanted["mask"]) and torch.equal(blend["freqs_cis"], wanted["freqs_cis"])
    shown = glue("evaluate", "prior.safetensors", "--split", "val", *OF_NET, "--json", code=0).json["results"][0]
    assert shown["loss"] == pytest.approx(found["loss"]["val"], rel=1e-5)


def test_such_experts_are_evaluated_refreshed_and_finetuned(glue, masked):
    glue("evaluate", *masked, *OF_NET, "-q", code=0)
    glue("mix", "--method", "uniform", "--batchnorm", "refresh", *masked, *OF_NET, "-q", code=0)
    assert load_file("prior.safetensors")["norm.num_batches_tracked"] > 0
    glue("finetune", "prior.safetensors", *OF_NET, "-q", code=0)
    assert torch.equal(load_file("finetuned.safetensors")["mask"], load_file(masked[0])["mask"])


def test_an_infinity_that_is_no_constant_is_still_told(glue, masked):
    tensors = load_file(masked[2])
    tensors["embed.weight"][3, 3] = float("inf")
    save_file(tensors, masked[2])
    for command in (
        ["mix", "--method", "uniform", *masked],
        ["mix", "--method", "spsa", *masked],
        ["evaluate", masked[2]],
    ):
        glue(*command, *OF_NET, "-q").refused(3, "'embed.weight' has", "inf")
    tensors["embed.weight"][3, 3] = 1.0
    tensors["norm.running_var"][0] = float("inf")
    save_file(tensors, masked[2])
    glue("evaluate", masked[2], *OF_NET, "-q").refused(3, "'norm.running_var' has")
