"""--weights: a file with several sets of weights, from the command line to what is recorded."""

import json
import shlex

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file


@pytest.fixture
def several(here, experts):
    """The first two experts as `model` and `ema` of one file of torch's; the file's name."""
    first, second = (load_file(expert) for expert in experts[:2])
    torch.save({"model": first, "ema": second, "epoch": 3}, "several.pth.tar")
    return "several.pth.tar"


def test_a_blend_of_the_set_that_was_named(here, glue, experts, several):
    glue("mix", "--alpha", "0.5,0.5", several, experts[2], "-q").refused(3, "several sets of weights", "--weights ema")
    mixed = glue("mix", "--alpha", "0.5,0.5", several, experts[2], "--weights", "ema", "--json", code=0).json
    assert [expert.get("weights") for expert in mixed["experts"]] == ["ema", None]
    glue("mix", "--alpha", "0.5,0.5", experts[1], experts[2], "-o", "plain.safetensors", "-q", code=0)
    found, wanted = load_file("prior.safetensors"), load_file("plain.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with safe_open("prior.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()["glue"])["experts"]
    assert [expert.get("weights") for expert in recorded] == ["ema", None]
    again = ("mix", "--like", "prior.safetensors", several, experts[2], "-o", "again.safetensors")
    glue(*again, "--weights", "model").refused(2, "--like", "--weights")
    glue(*again, "-q", code=0)
    assert (here / "again.safetensors").read_bytes() == (here / "prior.safetensors").read_bytes()


def test_evaluate_finetune_and_show_take_the_set_that_was_named(here, glue, experts, several):
    glue("evaluate", several, "-q").refused(3, "several sets of weights")
    (ema,) = glue("evaluate", several, "--weights", "ema", "--json", code=0).json["results"]
    (plain,) = glue("evaluate", experts[1], "--json", code=0).json["results"]
    assert ema["weights"] == "ema" and "weights" not in plain and ema["loss"] == plain["loss"]
    shown = glue("show", several, "--weights", "model", "--json", code=0).json
    assert shown["weights"] == "model" and len(shown["tensors"]) == len(load_file(experts[0]))
    brief = ("--set", "finetune.epochs=1")
    glue("finetune", several, "--weights", "ema", *brief, "-o", "a.safetensors", "-q", code=0)
    glue("finetune", experts[1], *brief, "-o", "b.safetensors", "-q", code=0)
    found, wanted = load_file("a.safetensors"), load_file("b.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert glue("show", "a.safetensors", "--json", code=0).json["glue"]["weights"] == "ema"


def test_the_hint_saves_a_set_alone_for_where_there_is_no_option(here, glue, experts, several):
    refused = glue("train-expert", "--expert", "0", "--set", f"experts.init={several}", "-q", code=3)
    hint = refused.err.partition("hint: ")[2]
    _, *command = shlex.split(hint.partition("alone: ")[2].replace("\n", " "))
    assert command[:5] == ["mix", "--alpha", "1", "--weights", "ema"]
    glue(*command, "-q", code=0)
    found, wanted = load_file("alone.safetensors"), load_file(experts[1])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    brief = ("--set", "train.epochs=1", "--set", "experts.init=alone.safetensors")
    glue("train-expert", "--expert", "0", *brief, "-o", "begun.safetensors", "-q", code=0)


def test_a_choice_that_is_none(here, glue, experts, several):
    glue("mix", "--method", "uniform", *experts, "--weights", "ema").refused(2, "none of these files")
    glue("evaluate", experts[0], "--weights", "ema").refused(2, "none of these files")
    glue("evaluate", several, "--weights", "teacher").refused(2, "no such set")
    glue("finetune", "--from-scratch", "--weights", "ema").refused(2, "--weights")
