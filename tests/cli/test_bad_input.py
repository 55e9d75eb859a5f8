"""All the ways in which input is bad: each has its exit code, says what and where, and leaves no trace on disk."""

import errno
import json
import math
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.cli.app import main
from glue_cli.foundation import output_files as output

EXPERT_0, EXPERT_1 = "experts/expert-000.safetensors", "experts/expert-001.safetensors"
WEIGHT = "features.0.weight"


@pytest.fixture
def refused(glue, snapshot):
    """Call glue; check the error, and that the disk is as it was."""

    def call(arguments, code, *parts, leaves=(), hint=True):
        before = snapshot()
        glue(*arguments).refused(code, *parts, hint=hint)
        after = snapshot()
        assert {name: after.pop(name, None) is not None for name in leaves} == dict.fromkeys(leaves, True)
        assert after == before

    return call


# ---- experts

BAD_EXPERTS = {
    "missing": ("the experts are not of one architecture", f"'{WEIGHT}' is missing"),
    "extra": ("the experts differ in these tensors", "'more' is not in", "--exclude more --copy-from"),
    "shape": ("the experts are not of one architecture", f"'{WEIGHT}' is [4, 3, 3]"),
    "dtype": ("the experts differ in dtype", f"'{WEIGHT}' is F16", "--dtype"),
    "truncated": ("cut short", "copy or download"),
    "header only": ("cut short", "copy or download"),
    "text": ("not a safetensors file", "copy or download"),
    "empty": ("copy or download",),
    "huge header": ("10,000,000,000", "copy or download"),
    "json list": ("not a safetensors file",),
    "trailing": ("bytes behind its last tensor",),
    "overlap": ("overlaps",),
    "float8": ("is quantised", "F8_E4M3"),
}


@pytest.fixture
def bad(here, altered):
    """Write an expert that is bad in a named way."""

    def make(how):
        path = Path("experts/bad.safetensors")
        whole = Path(EXPERT_1).read_bytes()
        length = int.from_bytes(whole[:8], "little")
        match how:
            case "missing":
                altered(path, lambda tensors: tensors.pop(WEIGHT))
            case "extra":
                altered(path, lambda tensors: tensors.update(more=torch.ones(2)))
            case "shape":
                altered(path, lambda tensors: tensors.update({WEIGHT: torch.ones(4, 3, 3)}))
            case "dtype" | "float8":
                dtype = torch.float16 if how == "dtype" else torch.float8_e4m3fn
                altered(path, lambda t: t.update({n: x.to(dtype) for n, x in t.items() if x.is_floating_point()}))
            case "nan" | "inf" | "-inf":
                altered(path, lambda tensors: tensors[WEIGHT].view(-1)[5:].fill_(float(how)))
            case "truncated":
                path.write_bytes(whole[:-10])
            case "header only":
                path.write_bytes(whole[: 8 + length])
            case "text":
                path.write_text("these are no weights, nor anything like them\n")
            case "empty":
                path.write_bytes(b"")
            case "huge header":
                path.write_bytes(struct.pack("<Q", 10_000_000_000) + b"{}")
            case "json list":
                path.write_bytes(struct.pack("<Q", 8) + b"[1,2,3] ")
            case "trailing":
                path.write_bytes(whole + b"more")
            case "overlap":
                header = json.loads(whole[8 : 8 + length])
                first, second = (name for name in list(header)[-2:])
                header[second]["data_offsets"] = header[first]["data_offsets"]
                header[second]["shape"], header[second]["dtype"] = header[first]["shape"], header[first]["dtype"]
                text = json.dumps(header).encode()
                path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        return str(path)

    return make


@pytest.mark.parametrize("choice", ["--alpha=0.5,0.5", "--method=spsa", "--method=proxy"])
@pytest.mark.parametrize("how", BAD_EXPERTS)
def test_experts_that_cannot_be_blended(here, refused, bad, how, choice):
    refused(["mix", choice, EXPERT_0, bad(how)], 3, "experts/bad.safetensors", *BAD_EXPERTS[how])


@pytest.mark.parametrize("choice", ["--alpha=0.5,0.5", "--method=spsa", "--method=fullgrad", "--method=proxy"])
@pytest.mark.parametrize("how", ["nan", "inf", "-inf"])
def test_experts_with_nan_or_infinity(here, refused, bad, how, choice):
    refused(["mix", choice, EXPERT_0, bad(how), "-q"], 3, "experts/bad.safetensors", WEIGHT)
    Path("prior.safetensors").write_bytes(b"precious")
    refused(["mix", choice, EXPERT_0, bad(how), "-q", "-f"], 3, "experts/bad.safetensors", WEIGHT)
    assert Path("prior.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("how", [how for how in BAD_EXPERTS if how != "dtype"] + ["nan", "inf"])
def test_checkpoints_that_cannot_be_used(here, refused, bad, how):
    for command in (["evaluate"], ["finetune"]):
        refused([*command, bad(how), "-q"], 3, "experts/bad.safetensors")
    if how not in ("missing", "extra", "shape"):  # a start that fits but in part is one all the same
        init = ["--set", f"experts.init={bad(how)}"]
        refused(["train-expert", "--expert", "0", "-o", "n.safetensors", "-q", *init], 3, "bad")


def test_a_start_that_fits_in_part_says_what_is_fresh(here, glue, bad):
    init = ["--set", f"experts.init={bad('missing')}"]
    answer = glue("train-expert", "--expert", "0", "-o", "n.safetensors", *init, code=0)
    assert f"started from experts/bad.safetensors; fresh: {WEIGHT}" in answer.err


def test_many_differences_are_cut_to_five(here, glue, bad):
    answer = glue("mix", "--alpha", "0.5,0.5", EXPERT_0, bad("dtype"))
    lines = answer.err.splitlines()
    assert len(lines) == 8 and lines[6] == "  and 12 more"


def test_a_spec_that_does_not_match_the_checkpoints(here, refused, experts):
    wide = ["--set", "model.args.width=8"]
    for command in (["mix", "--method", "spsa"], ["mix", "--method", "proxy"], ["finetune"], ["evaluate"]):
        arguments = [*command, *(experts if command[0] == "mix" else experts[:1]), *wide]
        refused(arguments, 3, EXPERT_0, WEIGHT, "[8, 1, 3, 3]", "model.args")
    refused(["evaluate", EXPERT_0, "--set", "model.arch=resnet20", "--set", "model.args={}"], 3, "resnet20")


def test_a_model_that_does_not_take_the_data(here, refused):
    colour = ["--set", "model.args.in_channels=3"]
    refused(["train-expert", "--expert", "0", "-o", "n.safetensors", *colour], 3, "channel")
    narrow = ["--set", "model.args.num_classes=3"]
    refused(["finetune", "--from-scratch", *narrow], 3, "labels out of range", "num_classes")


# ---- alpha, sizes, names of things


@pytest.mark.parametrize(
    "alpha",
    ["-0.1,1.1", "0.5,0.6", "0.4,0.5", "1", "0.2,0.3,0.5", "a,b", "nan,1", "inf,0", "", "0.5,0.5,", "0.5;0.5", "0,0"],
)
def test_alpha(here, refused, alpha):
    refused(["mix", "--alpha", alpha, EXPERT_0, EXPERT_1], 2, "--alpha", hint=alpha != "0,0")


def test_alpha_may_miss_one_by_a_millionth(here, glue):
    glue("mix", "--alpha", "0.3333333,0.6666667", EXPERT_0, EXPERT_1, "-q", code=0)


@pytest.mark.parametrize("sizes", ["1", "1,2,3", "a,b", "1.5,2", "-1,2", "0,0", ""])
def test_sizes(here, refused, sizes):
    refused(["mix", "--method", "data-size", "--sizes", sizes, EXPERT_0, EXPERT_1], 2, "--sizes")


def test_sizes_that_nobody_knows(here, refused, altered):
    altered("plain.safetensors")
    refused(["mix", "--method", "data-size", EXPERT_0, "plain.safetensors"], 2, "  plain.safetensors", "--sizes")
    for examples in (1.0, True, -3, "80", None):
        altered("plain.safetensors", metadata={"glue": json.dumps({"examples": examples})})
        refused(["mix", "--method", "data-size", EXPERT_0, "plain.safetensors"], 2, "  plain.safetensors", "--sizes")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["mix", "--method", "spsa"], ["no experts given", "experts/*.safetensors"]),
        (["mix", "--alpha", "1"], ["no experts given"]),
        (["mix", EXPERT_0], ["--method or --alpha"]),
        (["mix", "--method", "spsa", "--alpha", "1", EXPERT_0], ["--method or --alpha"]),
        (["mix", "--method", "spas", EXPERT_0], ["--method spas", "did you mean 'spsa'?"]),
        (["mix", "--method", "SPSA", EXPERT_0], ["--method SPSA"]),
        (["mix", "--method", "uniform", "--sizes", "3", EXPERT_0], ["--sizes"]),
        (["mix", "--method", "uniform", "--dtype", "float8", EXPERT_0], ["--dtype float8"]),
        (["mix", "--method", "spsa", "experts/*.npz"], ["'experts/*.npz'"]),
        (["mix", "--method", "spsa", "--device", "gpu", EXPERT_0], ["--device gpu", "cuda"]),
        (["mix", "--method", "spsa", "--precision", "fp16", EXPERT_0], ["--precision fp16"]),
        (["mix", "--method", "spsa", "--seed", "-1", EXPERT_0], ["--seed -1"]),
        (["mix", "--method", "spsa", "--seed", str(2**63), EXPERT_0], ["--seed"]),
        (["mix", "--method", "spsa", "--seed", "x", EXPERT_0], ["--seed", "found 'x'"]),
        (["mix", "--method", "uniform", "--fast", EXPERT_0], ["no such option: --fast"]),
        (["mix", "--method"], ["--method"]),
        (["evaluate", EXPERT_0, "--split", "dev"], ["--split dev"]),
        (["evaluate", "nope.safetensors"], ["'nope.safetensors'"]),
        (["evaluate"], ["CHECKPOINT"]),
        (["finetune"], ["--from-scratch"]),
        (["finetune", "--from-scratch", EXPERT_0], ["--from-scratch"]),
        (["finetune", "nope.safetensors"], ["'nope.safetensors'"]),
        (["finetune", EXPERT_0, EXPERT_1], [EXPERT_1]),
        (["finetune", EXPERT_0, "--track", "train"], ["--track train"]),
        (["train-expert"], ["--expert"]),
        (["train-expert", "--expert", "3"], ["--expert 3", "3 experts, 0 to 2"]),
        (["train-expert", "--expert", "-1"], ["--expert -1"]),
        (["train-expert", "--expert", "one"], ["--expert", "found 'one'"]),
        (["train-expert", "--expert", "0", "--spec", "nope.yaml"], ["'nope.yaml'"]),
        (["mxi", EXPERT_0], ["no such command 'mxi'", "did you mean 'mix'?"]),
        (["--fast"], ["no such option: --fast"]),
        (["evaluate", EXPERT_0, "--set", "train.epoch=3"], ["train.epoch", "'epochs'"]),
        (["evaluate", EXPERT_0, "--set", "nope=3"], ["nope"]),
        (["evaluate", EXPERT_0, "--set", "nope.epochs=3"], ["nope"]),
        (["evaluate", EXPERT_0, "--set", "train.epochs=many"], ["train.epochs", "'many'"]),
        (["evaluate", EXPERT_0, "--set", "train.epochs=0"], ["train.epochs"]),
        (["evaluate", EXPERT_0, "--set", "train.lr=.nan"], ["train.lr"]),
        (["evaluate", EXPERT_0, "--set", "train.epochs"], ["KEY=VALUE"]),
        (["evaluate", EXPERT_0, "--set", "model.arch=resnet2"], ["resnet2", "'resnet20'"]),
        (["evaluate", EXPERT_0, "--set", "data.format=cifar"], ["cifar", "'cifar10'"]),
        (["evaluate", EXPERT_0, "--set", "loss=hinge"], ["loss"]),
    ],
)
def test_command_lines(here, refused, arguments, parts):
    refused(arguments, 2, *parts)


# ---- outputs


def test_outputs_that_would_overwrite_what_is_read(here, refused):
    shutil.copytree("data", "own")
    spec = Path("glue.yaml")
    spec.write_text(spec.read_text() + "\n")
    os.link(EXPERT_0, "hard.safetensors")
    os.symlink(EXPERT_0, "soft.safetensors")
    for name in (EXPERT_0, f"experts/../{EXPERT_1}", "hard.safetensors", "soft.safetensors", "glue.yaml"):
        for force in ([], ["-f"]):
            refused(["mix", "--alpha=0.5,0.5", EXPERT_0, EXPERT_1, "-o", name, *force], 2, f"'{name}'", "input")
            refused(["mix", "--method=spsa", EXPERT_0, EXPERT_1, "-o", name, *force], 2, f"'{name}'", "input")
            refused(["mix", "--method=spsa", EXPERT_0, EXPERT_1, "--history", name, *force], 2, f"'{name}'", "input")
    for name in ("data/train.safetensors", "data/test.safetensors"):
        refused(["mix", "--method=spsa", EXPERT_0, "-o", name, "-f"], 2, f"'{name}'", "input")
        refused(["finetune", EXPERT_0, "-o", name, "-f"], 2, f"'{name}'", "input")
        refused(["train-expert", "--expert", "0", "-o", name, "-f"], 2, f"'{name}'", "input")
        refused(["evaluate", EXPERT_0, "-o", name, "-f"], 2, f"'{name}'", "input")
    refused(["finetune", EXPERT_0, "-o", EXPERT_0, "-f"], 2, "input")
    own = "experts={members: [{name: own, data: {format: safetensors, root: own}}]}"
    refused(["train-expert", "--expert=0", "--set", own, "-f", "-o", "own/train.safetensors"], 2, "input")


def test_one_file_for_two_outputs(here, refused):
    refused(["finetune", EXPERT_0, "-o", "x", "--history", "./x"], 2, "'x' is both")


def test_outputs_that_cannot_be(here, refused, monkeypatch):
    refused(["mix", "--alpha=1", EXPERT_0, "-o", "experts"], 2, "'experts' is a folder")
    refused(["mix", "--alpha=1", EXPERT_0, "-o", f"{EXPERT_1}/x.safetensors"], 5, "expert-001")
    refused(["mix", "--alpha=1", EXPERT_0, "--history", "experts", "-f"], 2, "'experts' is a folder", "with --history")
    full = ["mix", "--method=spsa", EXPERT_0, EXPERT_1, "--history", "/dev/full", "--set", "mix.steps=3"]
    refused([*full, "-f"], 2, "'/dev/full' is no regular file", "with --history")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    refused(["mix", "--alpha=1", EXPERT_0], 5, "nothing can be written", "--output")
    refused(["train-expert", "--expert", "0", "-o", "new/x.safetensors"], 5, "nothing can be written")


def test_a_full_disk(here, refused, monkeypatch):
    monkeypatch.setattr(output, "_fallocate", lambda descriptor, n_bytes: errno.ENOSPC)
    refused(["mix", "--alpha=1", EXPERT_0, "-q"], 5, "prior.safetensors", "No space left")
    refused(["finetune", EXPERT_0, "-q"], 5, "finetuned.safetensors", "No space left")


# ---- data and spec


def test_labels_out_of_range(here, refused):
    tensors = load_file("data/train.safetensors")
    for wrong in (10, -1):
        labels = tensors["labels"].clone()
        labels[:] = wrong
        save_file({"images": tensors["images"], "labels": labels}, "data/train.safetensors")
        for command in (
            ["train-expert", "--expert=0", "-o", "n.st"],
            ["finetune", EXPERT_0],
            ["mix", "-m", "spsa", EXPERT_0],
        ):
            refused([*command, "-q"], 3, "data", str(wrong))


def test_data_that_is_not_there_or_damaged(here, refused):
    commands = [
        ["train-expert", "--expert=0", "-o", "n.st"],
        ["finetune", EXPERT_0],
        ["evaluate", EXPERT_0, "--split=val"],
    ]
    for command in [*commands, ["mix", "--method=proxy", EXPERT_0]]:
        for dry in ([], ["--dry-run"]):
            refused([*command, "--set", "data.root=nowhere", *dry], 3, "'nowhere'", "data.root")
        refused([*command, "--set", "data.format=cifar10"], 3, "data")
    refused(["finetune", EXPERT_0, "--set", "data.target.train=10000"], 3, "data.target", "600")
    refused(["train-expert", "--expert=0", "-o", "n.st", "--set", "experts.size=10000"], 3, "experts.size")
    whole = Path("data/train.safetensors").read_bytes()
    Path("data/train.safetensors").write_bytes(whole[:-50])
    for command in [*commands, ["mix", "--method=spsa", EXPERT_0]]:
        refused(command, 3, "data/train.safetensors")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: [", ["glue.yaml:1"]),
        ("", ["model: missing", "data: missing"]),
        ("- a\n- b\n", ["glue.yaml:1"]),
        ("modle: {arch: cnn}\n", ["glue.yaml:1", "did you mean 'model'?"]),
        ("model: {arch: cnn}\nmodel: {arch: vit}\n", ["glue.yaml:2", "given twice"]),
        ("model: {arch: cnnn}\ndata: {format: nope, root: .}\n", ["glue.yaml:1", "'cnn'", "glue.yaml:2", "nope"]),
        (
            "model: {arch: cnn}\ndata: {format: safetensors, root: data}\ntrain: {lr: fast}\n",
            ["glue.yaml:3", "'fast'"],
        ),
        (
            "model: {arch: cnn}\ndata: {format: safetensors, root: data}\nexperts: {count: 3}\n",
            ["glue.yaml:3", "size"],
        ),
        ("model: {arch: cnn, args: {depth: 3}}\ndata: {format: safetensors, root: data}\n", ["depth"]),
    ],
)
def test_specs(here, refused, text, parts):
    Path("glue.yaml").write_text(text)
    refused(["finetune", "--from-scratch"], 3, *parts)


def test_a_spec_without_experts(here, refused):
    spec = Path("glue.yaml").read_text().splitlines()
    Path("glue.yaml").write_text("\n".join(line for line in spec if not line.startswith("experts")))
    refused(["train-expert", "--expert", "0"], 3, "experts")


def test_specs_that_are_no_text(here, refused):
    refused(["evaluate", EXPERT_0, "--spec", EXPERT_1], 3, EXPERT_1)
    refused(["evaluate", EXPERT_0, "--spec", "experts"], 3, "experts")


# ---- numbers, devices, memory


@pytest.mark.parametrize("lr", ["1e20", "1e38", "1e300"])
def test_divergence(here, refused, glue, lr):
    diverging = ["-q", "--set", "train.epochs=3", "--set", "finetune.epochs=3"]
    diverging += ["--set", f"train.lr={lr}", "--set", f"finetune.lr={lr}"]
    refused(["train-expert", "--expert=0", "-o", "new/n.st", *diverging], 4, "'train expert-000'", "lower the lr")
    refused(["finetune", EXPERT_0, "--history=h.jsonl", *diverging], 4, "'finetune'", "lr", leaves=["h.jsonl"])


def test_divergence_in_the_very_last_step(here, refused):
    one_step = ["--set", "train.batch_size=80", "--set", "train.epochs=1", "--set", "train.lr=1e39", "-q"]
    refused(["train-expert", "--expert", "0", "-o", "n.safetensors", *one_step], 4, "not finite", "lower the lr")


def blow_up(tensors):
    for name in tensors:
        if name.startswith("head"):
            tensors[name].fill_(3e38)


def test_blends_that_overflow_are_left_out_and_named(here, glue, altered):
    altered("big.safetensors", blow_up)
    answer = glue("mix", "--method=spsa", "big.safetensors", EXPERT_0, "--json", "-q", code=0)
    assert math.isfinite(answer.json["loss"]["val"])
    shown = glue("mix", "--method=spsa", "big.safetensors", EXPERT_0, "--force", "-q", code=0).out
    assert "nan" not in shown and "skipped; left out: uniform blend, half-way to big, big" in shown


def test_experts_that_all_overflow(here, refused, altered):
    altered("big.safetensors", blow_up)
    altered("huge.safetensors", blow_up)
    refused(["mix", "--method=spsa", "big.safetensors", "huge.safetensors", "-q"], 4, "not finite")


def test_a_gpu_that_is_not_there(here, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    commands = [["train-expert", "--expert=0", "-o", "n.st"], ["finetune", EXPERT_0], ["evaluate", EXPERT_0]]
    for command in [*commands, ["mix", "--method=spsa", EXPERT_0]]:
        refused([*command, "--device", "cuda"], 5, "'cuda'", "--device cpu")
        refused([*command, "--device", "cuda:3"], 5, "'cuda:3'")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_out_of_memory(here, refused, monkeypatch, error):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.setattr("glue_cli.workflows.mix.whole_experts.load_bank", exhausted)
    refused(["mix", "--method=spsa", EXPERT_0, EXPERT_1, "--bank=device", "-q"], 5, "out of memory", "--bank disk")


def test_out_of_memory_where_there_is_no_bank(here, refused, capsys, monkeypatch):
    def exhausted(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("glue_cli.workflows.evaluate.evaluate", exhausted)
    refused(["evaluate", EXPERT_0, "-q"], 5, "out of memory", "more memory")
    assert main(["evaluate", EXPERT_0, "-q"]) == 5 and "--bank" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("a bug"), RuntimeError("a bug: the buffer is not allocated yet")])
def test_a_bug_keeps_its_traceback(here, capsys, monkeypatch, error):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("glue_cli.workflows.mix.whole_experts.load_bank", broken)
    assert main(["mix", "--method=spsa", EXPERT_0, EXPERT_1, "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and f"{type(error).__name__}: {error}" in err


def test_debug_shows_the_traceback_of_a_known_error_too(here, glue, monkeypatch):
    monkeypatch.setenv("GLUE_DEBUG", "1")
    answer = glue("evaluate", "nope.safetensors", code=2)
    assert answer.err.startswith("Traceback") and answer.err.splitlines()[-2].startswith("error: no checkpoint")
    monkeypatch.setenv("GLUE_DEBUG", "0")
    assert "Traceback" not in glue("evaluate", "nope.safetensors", code=2).err


def test_a_name_that_no_file_system_takes(here, refused):
    refused(["evaluate", "x" * 300], 2, f"no checkpoint at '{'x' * 300}'")
