"""What the checkpoints hold: the same bytes for the same inputs, sorted metadata, nothing of the test data."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glue_cli import __version__

EXPERT_0 = "experts/expert-000.safetensors"


def glue_metadata(path):
    with safe_open(path, "pt") as file:
        found = file.metadata()
    assert list(found) and set(found) == {"format", "glue"} and found["format"] == "pt"
    parsed = json.loads(found["glue"])
    assert found["glue"] == json.dumps(parsed, sort_keys=True, ensure_ascii=False)
    header = Path(path).read_bytes()
    assert header.index(b'"format"') < header.index(b'"glue"')
    assert parsed["glue"] == __version__
    return parsed


def write_all_outputs(glue, experts, suffix, *flags):
    calls = [
        ["train-expert", "--expert", "1"],
        ["mix", "--method", "spsa", *experts],
        ["mix", "--method", "fullgrad", *experts],
        ["mix", "--method", "proxy", *experts],
        ["mix", "--alpha", "0.2,0.3,0.5", *experts],
        ["finetune", EXPERT_0],
        ["finetune", "--from-scratch"],
    ]
    outputs = [f"{suffix}-{number}.safetensors" for number in range(len(calls))]
    for call, output in zip(calls, outputs, strict=True):
        glue(*call, "-o", output, "-q", *flags, code=0)
    return [Path(output).read_bytes() for output in outputs]


def test_the_same_inputs_and_seed_give_the_same_bytes(here, glue, experts):
    first = write_all_outputs(glue, experts, "first")
    assert write_all_outputs(glue, experts, "second") == first
    other = write_all_outputs(glue, experts, "other", "--seed", "8")
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_path_that_is_spelled_otherwise_gives_the_same_bytes(here, glue, experts):
    glue("mix", "--method", "uniform", *experts, "-q", code=0)
    glue("mix", "--method", "uniform", *[here / path for path in experts], "-o", "again.safetensors", "-q", code=0)
    assert Path("prior.safetensors").read_bytes() == Path("again.safetensors").read_bytes()
    glue("finetune", "prior.safetensors", "-q", code=0)
    glue("finetune", here / "experts/../prior.safetensors", "-o", "again.safetensors", "-f", "-q", code=0)
    assert Path("finetuned.safetensors").read_bytes() == Path("again.safetensors").read_bytes()


def test_metadata_of_an_expert(here):
    found = glue_metadata(EXPERT_0)
    assert found["model"] == {"arch": "cnn", "args": {"num_classes": 10, "in_channels": 1, "width": 4}}
    assert (found["examples"], found["seed"], found["precision"], found["kind"]) == (80, 7, "fp32", "expert")
    assert "class_names" in found
    assert found["settings"]["train"]["epochs"] == 1 and found["settings"]["experts"]["dirichlet"] == 0.5


def test_metadata_of_a_blend(here, glue, experts):
    result = glue("mix", "--method", "spsa", *experts, "--json", code=0).json
    found = glue_metadata("prior.safetensors")
    assert (found["method"], found["alpha"], found["seed"]) == ("spsa", result["alpha"], 7)
    assert [e["name"] for e in found["experts"]] == [Path(path).name for path in experts]
    assert [e["sha256"] for e in found["experts"]] == [e["sha256"] for e in result["experts"]]
    assert all(len(e["sha256"]) == 64 and e["examples"] == 80 for e in found["experts"])
    assert found["settings"]["mix"]["steps"] == 4 and found["settings"]["precision"] == "fp32"
    assert found["model"]["arch"] == "cnn"
    assert "wall_s" not in json.dumps(found)


def test_sha256_is_that_of_the_file(here, glue, experts):
    import hashlib

    result = glue("mix", "--alpha", "0,0.5,0.5", *experts, "--json", code=0).json
    for expert in result["experts"]:
        assert expert["sha256"] == hashlib.sha256(Path(expert["path"]).read_bytes()).hexdigest()


def test_metadata_of_a_finetuned_model(here, glue, prior):
    glue("finetune", prior, "-q", code=0)
    found = glue_metadata("finetuned.safetensors")
    assert (found["start"], found["examples"], found["kind"]) == ("prior.safetensors", 120, "finetuned")
    assert found["settings"]["finetune"]["lr"] == 0.01


def test_the_paper_preset_is_resolved_in_the_metadata(here, glue, experts):
    flags = ["--set", "mix={preset: paper, steps: 2, validate_every: 1}"]
    glue("mix", "--method", "spsa", *experts, *flags, "-q", code=0)
    settings = glue_metadata("prior.safetensors")["settings"]["mix"]
    assert (settings["preset"], settings["lr"], settings["mu"], settings["zero_sum"]) == ("paper", 0.01, 0.01, False)


def test_checkpoints_load_in_plain_safetensors_and_as_float32(here, glue, prior):
    glue("finetune", prior, "-q", code=0)
    for path in (EXPERT_0, prior, "finetuned.safetensors"):
        tensors = load_file(path)
        assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32", "torch.int64"}
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.parametrize("what", ["gone", "shuffled"])
def test_nothing_but_evaluation_touches_the_test_data(here, glue, experts, what):
    before = write_all_outputs(glue, experts, "before")
    test = Path("data/test.safetensors")
    if what == "gone":
        test.unlink()
    else:
        tensors = load_file(test)
        save_file({"images": 255 - tensors["images"], "labels": tensors["labels"].flip(0)}, test)
    assert write_all_outputs(glue, experts, "after") == before
    if what == "gone":
        glue("evaluate", EXPERT_0).refused(3, "'data/test.safetensors' is missing")
        glue("finetune", EXPERT_0, "--track", "test").refused(3, "'data/test.safetensors' is missing")
        for split in ("train", "val"):
            glue("evaluate", EXPERT_0, "--split", split, "-q", code=0)


def test_outputs_have_the_modes_of_the_umask(here, glue, experts):
    import os

    before = os.umask(0o027)
    try:
        glue(
            "mix", "--method", "uniform", *experts, "-o", "new/p.safetensors", "--history", "new/h.jsonl", "-q", code=0
        )
    finally:
        os.umask(before)
    assert Path("new/p.safetensors").stat().st_mode & 0o777 == 0o640
    assert Path("new/h.jsonl").stat().st_mode & 0o777 == 0o640
