"""The options of `glue mix` for heads, single tensors, adapters and banks, and PyTorch's own files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.cli.output import number

BLEND = ("--alpha", "0.5,0.3,0.2")


@pytest.fixture
def refused(here, glue, snapshot, experts):
    """Call `glue mix` on the experts; check the error, and that the disk is as it was."""

    def call(code, *arguments, parts=(), paths=experts):
        before = snapshot()
        glue("mix", *paths, *arguments).refused(code, *parts)
        assert snapshot() == before

    return call


@pytest.fixture
def adapters(here):
    """Two adapters of one linear layer, and their base."""
    for k in range(2):
        folder = Path(f"adapter-{k}")
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        factors = {"A": torch.full((1, 4), 1.0 + k), "B": torch.full((3, 1), 1.0)}
        tensors = {f"base_model.model.lin.lora_{x}.weight": tensor for x, tensor in factors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
    save_file({"lin.weight": torch.zeros(3, 4)}, "base.safetensors")
    return ["adapter-0", "adapter-1"]


@pytest.fixture
def heads(here):
    """Two experts with heads for 2 and 3 classes."""
    paths = []
    for k, classes in enumerate((["cat", "dog"], ["eel", "dog", "fox"])):
        tensors = {"body": torch.full((2,), float(k)), "fc.weight": torch.full((len(classes), 2), float(k))}
        paths.append(f"heads-{k}.safetensors")
        write_checkpoint(Path(paths[-1]), tensors, {"class_names": classes})
    return paths


def test_experts_with_nothing_in_common_are_told_unless_they_do_not_count(here, glue):
    for k in range(3):
        weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(k // 2))  # the first two are alike
        save_file({"weight": weight}, f"{k}.safetensors")
    files = [f"{k}.safetensors" for k in range(3)]
    told = glue("mix", *files, "--method", "uniform", "-o", "all.safetensors")
    assert "warning: the weights of 2.safetensors and the other experts are unrelated (cosine" in told.err
    alike = glue("mix", *files, "--alpha", "0.5,0.5,0", "-o", "two.safetensors")
    assert "unrelated" not in alike.err


# ---- PyTorch's own files


@pytest.mark.parametrize("suffix", ["pt", "bin"])
def test_pytorch_files_are_experts_too(here, glue, experts, suffix):
    files = []
    for k, path in enumerate(experts):
        files.append(f"expert-{k}.{suffix}")
        state = load_file(path)
        torch.save({"state_dict": state, "epoch": 3} if k else state, files[-1])
    glue("mix", *BLEND, *experts, "-o", "usual.safetensors", "-q", code=0)
    glue("mix", *BLEND, *files, "-o", "prior.safetensors", "-q", code=0)
    usual, found = load_file("usual.safetensors"), load_file("prior.safetensors")
    assert found.keys() == usual.keys() and all(torch.equal(found[name], tensor) for name, tensor in usual.items())
    [one, other] = glue("evaluate", experts[1], files[1], "--json", code=0).json["results"]
    assert (one["loss"], one["accuracy"]) == (other["loss"], other["accuracy"])


def test_a_pickle_of_something_else_is_refused(refused):
    torch.save({"path": Path("x")}, "bad.pt")
    refused(3, "--alpha", "1", paths=["bad.pt"], parts=["bad.pt"])


# ---- what the options do


def test_a_head_is_aligned(heads, glue):
    options = ["--head", "fc.*", "--head-policy", "align", "--classes", "fox, dog,cat"]
    assert glue("mix", "--alpha", "0.25,0.75", *heads, *options, "--json", code=0).json["alpha"] == [0.25, 0.75]
    assert load_file("prior.safetensors")["fc.weight"][:, 0].tolist() == [1.0, 0.75, 0.0]


def test_a_head_is_an_experts(heads, glue):
    glue("mix", "--alpha", "0.25,0.75", *heads, "--head", "fc.*", "--head-policy", "from:heads-1", code=0)
    assert load_file("prior.safetensors")["fc.weight"].shape == (3, 2)


def test_patterns_may_be_given_several_times(here, glue, experts):
    options = ["--exclude", "head.*", "--exclude", "features.0.*", "--copy-from", experts[2]]
    glue("mix", *BLEND, *experts, *options, code=0)
    found, own = load_file("prior.safetensors"), load_file(experts[2])
    same = {name for name, tensor in found.items() if torch.equal(tensor, own[name]) and tensor.is_floating_point()}
    assert same == {"head.weight", "head.bias", "features.0.weight"}


def test_statistics_are_refreshed(here, glue, experts):
    result = glue("mix", *BLEND, *experts, "--batchnorm", "refresh", "--json", code=0).json
    assert result["cost"]["forwards"] == 4 and result["settings"]["batchnorm"] == "refresh"
    glue("mix", *BLEND, *experts, "-o", "plain.safetensors", code=0)
    found, plain = load_file("prior.safetensors"), load_file("plain.safetensors")
    changed = {name.rpartition(".")[2] for name, tensor in found.items() if not torch.equal(tensor, plain[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("search", ["plain"])
@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_of_a_refreshed_search_the_figure_as_written_is_shown(here, glue, experts, search, objective):
    command = ["mix", "--method", "spsa", *experts, "--batchnorm", "refresh"]
    command += ["--set", f"mix.search={search}", "--set", f"objective={objective}"]
    result = glue(*command, "--json", code=0).json
    before = result["before_refresh"]
    written = glue("evaluate", "prior.safetensors", "--split", "val", "--json", code=0).json["results"][0][objective]
    answer = glue(*command, "-f", code=0)
    (line,) = [line for line in answer.out.splitlines() if "as written" in line]
    assert line == (
        f"validation {objective} {number(written)} as written; before BatchNorm was refreshed: "
        f"blend {number(before['val'])}, uniform blend {number(before['val_uniform'])}"
    )
    assert answer.out.count(f"validation {objective}") == 1


def test_groups_are_set_in_the_spec(here, glue, experts):
    command = ["mix", "--method", "spsa", *experts, "--set", "mix.groups={head: head.*}", "--bank", "disk"]
    answer = glue(*command, "--json", code=0)
    assert list(answer.json["groups"]) == ["head", "rest"] and "on disk" in answer.err
    glue(*command, "-f", code=0)


def test_adapters_give_an_adapter_or_a_model(adapters, glue):
    answer = glue("mix", "--alpha", "0.25,0.75", *adapters, "-o", "prior", code=0)
    assert "hint: glue evaluate prior measures it beside its base; with --base BASE" in answer.err
    result = glue("mix", "--alpha", "0.25,0.75", *adapters, "-o", "prior", "-f", "--json", code=0).json
    assert result["output"] == "prior" and sorted(path.name for path in Path("prior").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    glue("mix", "--alpha", "0.25,0.75", *adapters, "--base", "base.safetensors", code=0)
    assert load_file("prior.safetensors")["lin.weight"].unique().tolist() == [2 * (0.25 + 0.75 * 2)]


# ---- what is refused, before anything is written


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--bank", "gpu"], "--bank gpu: not known"),
        (["--batchnorm", "refreshed"], "--batchnorm refreshed: no such policy"),
        (["--batchnorm", "from:nobody"], "no expert of that name"),
        (["--head-policy", "align"], "--head"),
        (["--classes", "a,b"], "--head"),
        (["--head", "fc.*"], "--head 'fc.*' matches no tensor"),
        (["--head", "head.*", "--head-policy", "best"], "--head-policy best: no such policy"),
        (["--head", "head.*", "--head-policy", "from:9"], "no expert of that name"),
        (["--head", "head.*", "--head-policy", "align", "--classes", "0,0"], "names a class twice"),
        (["--exclude", "head.*"], "--copy-from EXPERT"),
        (["--include", "head.*"], "--copy-from EXPERT"),
        (["--copy-from", "0"], "--include or --exclude"),
        (["--exclude", "fc.*", "--copy-from", "0"], "--exclude 'fc.*' matches no tensor"),
        (["--exclude", "*", "--copy-from", "0"], "nothing to blend"),
        (["--exclude", "head.*", "--copy-from", "nobody"], "no expert of that name"),
        (["--base", "experts/expert-000.safetensors"], "--base is for adapters"),
        (["-o", "prior.pt"], "the name of another kind of file"),
        (["-o", "prior.json"], "-o prior.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_command_lines_that_make_no_sense(refused, arguments, part, dry):
    refused(2, *BLEND, *arguments, *dry, parts=[part])


def test_content_that_does_not_fit(refused, heads, experts):
    def blend(*arguments, parts, paths=heads):
        refused(3, "--method", "uniform", *arguments, paths=paths, parts=parts)

    blend("--head", "fc.*", parts=["heads differ", "'fc.weight' is [3, 2]", "align"])
    blend(
        "--head", "fc.*", "--head-policy", "align", "--classes", "cow", parts=["no expert knows any", "eel, dog, fox"]
    )
    write_checkpoint(Path(heads[1]), load_file(heads[1]), {})
    blend("--head", "fc.*", "--head-policy", "align", parts=["do not say the names of their classes", heads[1]])


def test_specs_that_do_not_fit(refused, here):
    refused(3, "--method", "spsa", "--set", "mix.groups={head: fc.*}", parts=["mix.groups", "head: fc.*"])
    refused(
        3, "--method", "spsa", "--head", "head.*", "--head-policy", "reset", "--classes", "x", parts=["spec's model"]
    )
    (here / "glue.yaml").unlink()
    refused(2, *BLEND, "--batchnorm", "refresh", parts=["glue.yaml"])


def test_adapters_that_cannot_be_mixed(refused, adapters, experts):
    refused(2, "--method", "uniform", paths=adapters, parts=["is a file's name", "-o prior/"])
    refused(2, "--method", "uniform", "-o", "p", "--dtype", "float16", paths=adapters, parts=["--dtype"])
    refused(2, "--method", "uniform", "-o", "p", "--batchnorm", "from:0", paths=adapters, parts=["BatchNorm"])
    refused(3, "--method", "uniform", "-o", "p", paths=[adapters[0], experts[0]], parts=["whole checkpoints"])
    refused(3, "--method", "spsa", "-o", "p", paths=adapters, parts=["base model", "model.args.path"])
    refused(2, "--method", "spsa", "-o", "p", "--bank", "disk", paths=adapters, parts=["--bank disk is for whole"])
    refused(2, "--method", "uniform", "--base", "gone", paths=adapters, parts=["no checkpoint at 'gone'"])
    refused(3, "--method", "uniform", "--base", experts[0], paths=adapters, parts=["lacks weights"])


# ---- dry runs


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batchnorm", "refresh"],
        ["--batchnorm", "from:1"],
        ["--exclude", "head.*", "--copy-from", "2"],
        ["--head", "head.*", "--head-policy", "reset", "--classes", "a,b"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("how", [BLEND, ("--method", "spsa"), ("--method", "proxy")], ids=" ".join)
def test_a_dry_run_writes_nothing(here, glue, snapshot, experts, arguments, how):
    before = snapshot()
    plan = glue("mix", *how, *experts, *arguments, "--dry-run", "--json", code=0).json
    assert (plan["schema"], plan["experts"], plan["output"]) == ("glue.plan/1", 3, "prior.safetensors")
    assert ("steps_at_most" in plan) == ("spsa" in how)
    assert snapshot() == before


def test_a_dry_run_of_adapters(here, glue, snapshot, adapters):
    before = snapshot()
    plan = glue("mix", "--method", "uniform", *adapters, "-o", "prior", "--dry-run", "--json", code=0).json
    assert (plan["experts"], plan["tensors"], plan["output"]) == (2, 2, "prior")
    assert snapshot() == before
