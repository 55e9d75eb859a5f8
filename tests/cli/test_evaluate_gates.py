"""The gates of glue evaluate: bars, ceilings, a baseline, and how they are told to CI."""

import math
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from glue_cli.models import build_model

EXPERT_0 = "experts/expert-000.safetensors"


def losses_and_hits(path):
    """Return each test example's loss and whether it is right, float64 [N], by torch alone."""
    model = build_model("cnn", {"num_classes": 10, "in_channels": 1, "width": 4}, seed=0)
    model.load_state_dict(load_file(path))
    data = load_file("data/test.safetensors")
    with torch.no_grad():
        outputs = model.eval()((data["images"].float() / 255 - 0.5) / 0.5)
    losses = F.cross_entropy(outputs, data["labels"], reduction="none").double()
    return losses, (outputs.argmax(1) == data["labels"]).double()


def damaged(path, output, noise):
    """Write a copy of a checkpoint that is worse."""
    tensors = load_file(path)
    draws = torch.Generator().manual_seed(0)
    tensors["head.weight"] += noise * torch.randn(tensors["head.weight"].shape, generator=draws)
    save_file(tensors, output)
    return output


def test_fail_over(here, glue):
    loss = glue("evaluate", EXPERT_0, "--json", code=0).json["results"][0]["loss"]
    met = glue("evaluate", EXPERT_0, "--fail-over", f"loss={loss + 0.01}", "--json", code=0).json
    assert met["missed"] == [] and [gate["missed"] for gate in met["gates"]] == [False]
    missed = glue("evaluate", EXPERT_0, "--fail-over", f"loss={loss - 0.01}", "--json", code=6)
    assert f"loss {loss:.4f} is over {loss - 0.01:g}" in missed.err and len(missed.json["missed"]) == 1
    glue("evaluate", EXPERT_0, "--fail-over", f"loss={loss!r}", code=0)  # at the bar is not over it


@pytest.mark.parametrize("wrong", ["loss", "loss=nan", "accuracy=0.5", "mse=1", "perplexity=3", "=1"])
def test_fail_over_of_no_such_figure_is_refused(here, glue, wrong):
    assert glue("evaluate", EXPERT_0, "--fail-over", wrong, code=2).out == ""


def test_both_kinds_of_bars_are_reported_together(here, glue):
    flags = ("--fail-under", "accuracy=1", "--fail-over", "loss=0", "-q")
    answer = glue("evaluate", EXPERT_0, *flags, code=6)
    assert "is under 1" in answer.err and "is over 0" in answer.err


def test_nan_misses_every_bar(here, glue):
    tensors = load_file(EXPERT_0)
    tensors["head.weight"] *= 1e38  # finite, unlike the outputs
    tensors["features.8.weight"] *= 1e30
    save_file(tensors, "odd.safetensors")
    found = glue("evaluate", "odd.safetensors", "--fail-over", "loss=1e300", "--json", code=6).json
    assert found["results"][0]["loss"] is None and "loss nan is over" in found["missed"][0]


def test_outputs_that_are_nan_are_no_answers_and_any_model_is_better(here, glue):
    tensors = load_file(EXPERT_0)
    tensors["head.weight"] *= 1e38  # finite, unlike the outputs
    tensors["features.8.weight"] *= 1e30
    save_file(tensors, "nan.safetensors")
    [row] = glue("evaluate", "nan.safetensors", "--json", code=0).json["results"]
    assert row["loss"] is None and row["accuracy"] < 0.2
    better = glue("evaluate", EXPERT_0, "--compare", "nan.safetensors", "--json", code=0).json
    assert [gate["missed"] for gate in better["gates"]] == [False, False]
    assert "that of nan.safetensors is nan" in better["gates"][0]["text"]
    glue("evaluate", "nan.safetensors", "--compare", EXPERT_0, code=6)


def test_the_comparison_is_paired_by_example(here, glue, experts):
    found = glue("evaluate", experts[1], "--compare", experts[0], "--json").json
    (losses, hits), (losses_0, hits_0) = losses_and_hits(experts[1]), losses_and_hits(experts[0])
    by_figure = {gate["figure"]: gate for gate in found["gates"]}
    assert set(by_figure) == {"loss", "accuracy"}
    for figure, worse in (("loss", losses - losses_0), ("accuracy", hits_0 - hits)):
        gate, error = by_figure[figure], worse.std().item() / math.sqrt(len(worse))
        sign = 1 if figure == "loss" else -1
        assert sign * (gate["value"] - gate["bar"]) == pytest.approx(worse.mean().item(), rel=1e-4, abs=1e-6)
        assert gate["standard_error"] == pytest.approx(error, rel=1e-4)
        assert gate["missed"] == (worse.mean().item() > 2 * error)
    assert found["baseline"]["checkpoint"] == experts[0]
    assert [row["checkpoint"] for row in found["results"]] == [experts[1]]


def test_a_worse_checkpoint_fails_and_a_better_one_passes(here, glue):
    worse = damaged(EXPERT_0, "worse.safetensors", 3.0)
    answer = glue("evaluate", worse, "--compare", EXPERT_0, "-q", code=6)
    assert (
        answer.err.startswith("error: a checkpoint is worse than the baseline") and "worse.safetensors" in answer.err
    )
    assert EXPERT_0 in answer.out  # its row is shown too
    for bar, said in (("0", "a checkpoint is"), ("1", "the bar was missed and a checkpoint is")):
        flags = ("--compare", EXPERT_0, "--fail-under", f"accuracy={bar}", "-q")
        assert glue("evaluate", worse, *flags, code=6).err.startswith(f"error: {said} worse than the baseline")
    glue("evaluate", EXPERT_0, "--compare", worse, code=0)


def test_a_checkpoint_is_not_worse_than_itself_or_by_chance(here, glue):
    same = glue("evaluate", EXPERT_0, "--compare", EXPERT_0, "--json", code=0).json
    assert all(gate["standard_error"] == 0 and gate["value"] == gate["bar"] for gate in same["gates"])
    assert same["gates"][0]["text"] == f"loss is the same as that of {EXPERT_0}"
    near = damaged(EXPERT_0, "near.safetensors", 1e-6)
    glue("evaluate", near, "--compare", EXPERT_0, code=0)


def test_a_single_example_compares_nothing_and_is_refused(here, glue):
    data = load_file("data/test.safetensors")
    save_file({name: tensor[:1].clone() for name, tensor in data.items()}, "data/test.safetensors")
    worse = damaged(EXPERT_0, "worse.safetensors", 3.0)
    glue("evaluate", worse, "--compare", EXPERT_0).refused(3, "--compare: the test split", "a single example")


def test_a_baseline_that_does_not_fit_is_refused(here, glue):
    tensors = load_file(EXPERT_0)
    tensors["head.bias"] = torch.zeros(9)
    save_file(tensors, "other.safetensors")
    glue("evaluate", EXPERT_0, "--compare", "other.safetensors").refused(3, "other.safetensors")
    glue("evaluate", EXPERT_0, "--compare", "nothing.safetensors").refused(2, "nothing.safetensors")


# ---- JUnit


def suite_of(path):
    return ElementTree.parse(path).getroot()


def test_junit_has_a_test_for_each_gate(here, glue, experts):
    flags = ("--fail-under", "accuracy=0", "--fail-over", "loss=0", "--compare", EXPERT_0, "--junit", "out/gates.xml")
    found = glue("evaluate", *experts, *flags, "--json", code=6).json
    suite = suite_of("out/gates.xml")
    tests = suite.findall("testcase")
    assert suite.get("tests") == str(len(tests)) == str(len(found["gates"])) == "12"
    failures = [test for test in tests if test.find("failure") is not None]
    assert suite.get("failures") == str(len(failures)) == str(len(found["missed"]))
    assert {test.get("name") for test in tests} >= {"accuracy under 0", "loss over 0", "loss compare"}
    messages = [f"{test.get('classname')}: {test.find('failure').get('message')}" for test in failures]
    assert messages == found["missed"]


def test_junit_without_gates_says_what_was_evaluated(here, glue, experts):
    glue("evaluate", *experts, "--junit", "gates.xml", code=0)
    assert [test.get("classname") for test in suite_of("gates.xml").findall("testcase")] == experts


def test_junit_of_a_name_that_xml_cannot_hold(here, glue):
    odd = damaged(EXPERT_0, "odd\x1b<&>.safetensors", 0)
    glue("evaluate", odd, "--junit", "gates.xml", code=0)
    assert suite_of("gates.xml").find("testcase").get("classname") == "odd\\x1b<&>.safetensors"


def test_junit_is_an_output_like_others(here, glue):
    (here / "gates.xml").write_text("mine")
    glue("evaluate", EXPERT_0, "--junit", "gates.xml").refused(2, "'gates.xml' exists", "--junit")
    assert (here / "gates.xml").read_text() == "mine"
    glue("evaluate", EXPERT_0, "--junit", "gates.xml", "--force", code=0)
    glue("evaluate", EXPERT_0, "--junit", EXPERT_0, "--force").refused(2, "also an input")
    glue("evaluate", EXPERT_0, "--junit", "/proc/none/ev.xml", "-q").refused(5, "/proc", "with --junit")
    glue("evaluate", EXPERT_0, "--junit", "one.json", "-o", "./one.json").refused(2, "both the output and the report")


def test_junit_says_why_there_is_no_outcome(here, glue):
    tensors = load_file(EXPERT_0)
    tensors["head.weight"][0] = torch.nan
    save_file(tensors, "nan.safetensors")
    answer = glue("evaluate", EXPERT_0, "nan.safetensors", "--junit", "gates.xml", code=3)
    suite = suite_of("gates.xml")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "2")
    assert [test.get("classname") for test in suite.findall("testcase")] == [EXPERT_0, "nan.safetensors"]
    error = suite.find("testcase/error")
    assert f"error: {error.get('message')}\n" in answer.err and error.text.splitlines()[-1].startswith("hint: ")


def test_junit_of_an_earlier_call_does_not_pass_for_this_one(here, glue):
    flags = ("--junit", "gates.xml", "--force")
    glue("evaluate", EXPERT_0, *flags, code=0)
    glue("evaluate", "nothing.safetensors", *flags).refused(2, "nothing.safetensors")
    assert "no checkpoint" in suite_of("gates.xml").find("testcase/error").get("message")
    (here / "cut.safetensors").write_bytes((here / EXPERT_0).read_bytes()[:1000])
    glue("evaluate", "cut.safetensors", *flags).refused(3, "cut.safetensors")
    assert "cut.safetensors" in suite_of("gates.xml").find("testcase/error").get("message")


def test_junit_says_that_a_checkpoint_is_missing(here, glue):
    glue("evaluate", "nothing.safetensors", "--junit", "gates.xml", code=2)
    assert "no checkpoint" in suite_of("gates.xml").find("testcase/error").get("message")


def test_junit_of_an_error_replaces_nothing_else(here, glue):
    glue("evaluate", EXPERT_0, "--fail-under", "accuracy=9", "--junit", "gates.xml", code=2)
    glue("evaluate", EXPERT_0, "--dry-run", "--set", "data.root=nowhere", "--junit", "gates.xml", code=3)
    assert not (here / "gates.xml").exists()
    before = (here / EXPERT_0).read_bytes()
    glue("evaluate", EXPERT_0, "--set", "data.root=nowhere", "--junit", EXPERT_0, "--force", code=2)
    assert (here / EXPERT_0).read_bytes() == before
