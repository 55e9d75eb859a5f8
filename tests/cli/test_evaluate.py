"""glue evaluate: its figures, its bars, its tables."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.checkpoints.tensors import write_checkpoint

EXPERT_0 = "experts/expert-000.safetensors"
REGRESSION = """\
model: {arch: "python:own:net"}
loss: mse
data: {format: huggingface, root: table, columns: {inputs: [a, b], target: y}, target: {train: 80, val: 40}}
experts: {members: [{name: one, data: {format: "python:own:data", root: table}}]}
train: {epochs: 20, batch_size: 20, lr: 0.02}
mix: {steps: 2, validate_every: 1, batch_size: 20}
finetune: {epochs: 20, batch_size: 20, lr: 0.02}
precision: fp32
"""
OWN = """
import csv, torch

def net(width=8):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

def data(split, root):
    with open(root / "train.csv") as file:
        return [(torch.tensor([float(row["a"]), float(row["b"])]), float(row["y"])) for row in csv.DictReader(file)]
"""


def test_evaluate_on_each_split(here, glue, experts):
    for split, n in (("train", 120), ("val", 60), ("test", 80)):
        results = glue("evaluate", *experts, "--split", split, "--json", code=0).json["results"]
        assert [r["checkpoint"] for r in results] == experts
        assert all((r["split"], r["examples"]) == (split, n) for r in results)
        assert all(r["loss"] > 0 and 0 <= r["accuracy"] <= 1 for r in results)
    default = glue("evaluate", *experts, "--json", code=0).json["results"]
    assert default == results


def test_fail_under(here, glue, experts):
    met = glue("evaluate", *experts, "--fail-under", "accuracy=0", "--json", code=0)
    assert met.json["missed"] == []
    missed = glue("evaluate", *experts, "--fail-under", "accuracy=1", "--json", code=6)
    assert len(missed.json["results"]) == 3 and len(missed.json["missed"]) == 3
    for_people = glue("evaluate", *experts, "--fail-under", "accuracy=1", "-q", code=6)
    assert "accuracy" in for_people.out and EXPERT_0 in for_people.out
    assert for_people.err.startswith("error: ") and for_people.err.count("\n  experts/") == 3
    twice = glue("evaluate", EXPERT_0, "--fail-under", "accuracy=1", "--fail-under", "accuracy=0")
    twice.refused(2, "'accuracy' has 2 bars")
    for wrong in ("accuracy=nan", "accuracy", "accuracy=x", "=0.5", "loss=1", "r2=0.5"):
        glue("evaluate", EXPERT_0, "--fail-under", wrong).refused(2, "--fail-under")


@pytest.mark.parametrize(
    ("option", "bar", "said"),
    [
        ("--fail-under", "accuracy=90", "did you mean accuracy=0.9?"),
        ("--fail-under", "f1=1.01", "f1 is between 0 and 1"),
        ("--fail-under", "accuracy=-0.9", "accuracy is between 0 and 1"),
        ("--fail-under", "accuracy=-inf", "the bar is a number"),
        ("--fail-under", "r2=-inf", "the bar is a number"),
        ("--fail-over", "loss=inf", "the bar is a number"),
        ("--fail-over", "perplexity=0.5", "perplexity is at least 1"),
        ("--fail-over", "mae=-1", "mae is at least 0"),
    ],
)
def test_a_bar_beyond_all_that_a_figure_can_be(here, glue, option, bar, said):
    glue("evaluate", EXPERT_0, option, bar).refused(2, f"{option} {bar}", said)


def test_searches_and_bars_of_a_regression(here, glue, torchmetrics):
    for split, n in (("train", 90), ("test", 30)):
        inputs = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        save_file({"inputs": inputs, "targets": inputs.mean((1, 2, 3))[:, None]}, f"data/{split}.safetensors")
    members = "{name: m, data: {format: safetensors, root: data}}"
    regression = [
        "--set",
        "loss=mse",
        "--set",
        "model.args.num_classes=1",
        "--set",
        "data.target={train: 60, val: 30}",
    ]
    regression += ["--set", f"experts={{members: [{members}, {members}]}}"]
    for expert in (0, 1):
        glue("train-expert", "--expert", expert, "-o", f"m{expert}.safetensors", *regression, "-q", code=0)
    for method in ("spsa", "fullgrad"):
        glue("mix", "--method", method, "m0.safetensors", "m1.safetensors", "-f", *regression, "-q", code=0)
    proxy = glue("mix", "--method", "proxy", "m0.safetensors", "m1.safetensors", "-f", "--dry-run", *regression)
    proxy.refused(3, "accuracies", "loss: mse")
    glue("finetune", "prior.safetensors", *regression, "-q", code=0)
    answer = glue("evaluate", "finetuned.safetensors", "--json", *regression, "--fail-under", "r2=-1000", code=0)
    assert {"loss", "mse", "mae", "r2"} <= set(answer.json["results"][0])
    glue("evaluate", "finetuned.safetensors", *regression, "--fail-under", "accuracy=0.5").refused(2, "r2")
    glue("evaluate", "finetuned.safetensors", "--set", "model.args.num_classes=1").refused(3, "loss: mse")


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_model_for_other_targets_is_refused(here, glue, experts, torchmetrics, precision):
    options = ["--set", f"precision={precision}", "--set", "data.target={train: 60, val: 30}"]
    glue("evaluate", *experts, *options, "--set", "loss=mse").refused(3)
    inputs = torch.rand(90, 1, 8, 8)
    for split in ("train", "test"):
        save_file({"inputs": inputs, "targets": torch.rand(90, 2)}, f"data/{split}.safetensors")
    glue("evaluate", *experts, *options, "--set", "loss=mse").refused(3, "outputs are [2, 10], the targets [2, 2]")
    for split in ("train", "test"):
        save_file({"inputs": inputs, "labels": torch.arange(90) % 12}, f"data/{split}.safetensors")
    glue("evaluate", *experts, *options).refused(3, "labels out of range")


def test_a_figure_that_json_does_not_have_becomes_null(here, glue, torchmetrics):
    for split, n in (("train", 61), ("test", 1)):  # r2 of a single example is 0 / 0
        save_file({"inputs": torch.rand(n, 1, 8, 8), "targets": torch.ones(n, 1)}, f"data/{split}.safetensors")
    regression = ["--set", "loss=mse", "--set", "model.args.num_classes=1", "--set", "data.target={train: 60, val: 1}"]
    regression += ["--set", "finetune.preset=paper"]  # or folds would take the place of the one example
    result = glue("finetune", "--from-scratch", *regression, "--json", "--history", "h.jsonl", code=0).json
    assert result["history"][0]["val_r2"] is None
    assert "NaN" not in (here / "h.jsonl").read_text()
    answer = glue("evaluate", "finetuned.safetensors", *regression, "--json", "--fail-under", "r2=0", code=6)
    assert answer.json["results"][0]["r2"] is None
    glue("evaluate", "finetuned.safetensors", *regression, code=0)


def test_the_accuracy_of_each_class(here, glue, experts):
    results = glue("evaluate", *experts, "--json", code=0).json["results"]
    counts = load_file("data/test.safetensors")["labels"].bincount(minlength=10).tolist()
    for found in results:
        assert list(found["class_accuracy"]) == [str(i) for i in range(10)]
        right = sum(accuracy * n for accuracy, n in zip(found["class_accuracy"].values(), counts, strict=True))
        assert right / 80 == pytest.approx(found["accuracy"])


def test_classes_go_by_their_names_and_one_without_examples_has_none(here, glue):
    for split in ("train", "test"):
        tensors = load_file(f"data/{split}.safetensors")
        if split == "test":
            kept = tensors["labels"] != 3
            tensors = {name: tensor[kept] for name, tensor in tensors.items()}
        names = json.dumps(["zero", "one", "two", "three", *"456789"])
        save_file(tensors, f"data/{split}.safetensors", {"class_names": names})
    [found] = glue("evaluate", EXPERT_0, "--json", code=0).json["results"]
    assert list(found["class_accuracy"])[:4] == ["zero", "one", "two", "three"]
    assert found["class_accuracy"]["three"] is None and found["class_accuracy"]["two"] is not None
    lines = glue("evaluate", EXPERT_0, "--by-class", "-q", code=0).out.splitlines()
    assert next(line for line in lines if line.startswith("three")).split() == ["three", "-"]


def test_the_table_by_class_has_a_row_a_class_and_a_column_a_checkpoint(here, glue, experts):
    plain = glue("evaluate", *experts, "-q", code=0).out
    answer = glue("evaluate", *experts, "--by-class", "-q", code=0).out
    assert answer.startswith(plain)
    header, line, *rows = answer.removeprefix(plain).strip().splitlines()
    assert header.split() == ["class", "expert-000", "expert-001", "expert-002"] and set(line) == {"─"}
    assert [row.split()[0] for row in rows] == [str(i) for i in range(10)]
    assert all(row.count(" %") == 3 for row in rows)
    (here / "other").mkdir()
    (here / "other/expert-000.safetensors").write_bytes((here / EXPERT_0).read_bytes())
    answer = glue("evaluate", EXPERT_0, "other/expert-000.safetensors", "--by-class", "-q", code=0).out
    assert f"{EXPERT_0}   other/expert-000.safetensors" in answer


def test_metrics(here, glue, torchmetrics):
    [plain] = glue("evaluate", EXPERT_0, "--json", code=0).json["results"]
    arguments = ["evaluate", EXPERT_0, "--metric", "f1", "--metric", "recall", "--json"]
    [found] = glue(*arguments, code=0).json["results"]
    assert found["recall"] == pytest.approx(sum(found["class_accuracy"].values()) / 10, abs=1e-6)
    assert 0 < found["f1"] < 1 and {name: found[name] for name in plain} == plain
    table = glue("evaluate", EXPERT_0, "--metric", "auroc", "-q", code=0).out
    assert table.splitlines()[0].split() == ["checkpoint", "split", "examples", "loss", "accuracy", "auroc"]


def test_a_bar_for_a_metric_has_it_evaluated(here, glue, torchmetrics):
    assert "f1" in glue("evaluate", EXPERT_0, "--fail-under", "f1=0", "--json", code=0).json["results"][0]
    missed = glue("evaluate", EXPERT_0, "--fail-under", "f1=1", "--fail-under", "accuracy=0", code=6)
    assert missed.err.count("is under") == 1 and f"{EXPERT_0}: f1 0." in missed.err


@pytest.mark.parametrize("option", [["--metric", "f2"], ["--metric", "mae"], ["--fail-under", "mae=1"]])
def test_a_figure_that_there_is_not(here, glue, option):
    glue("evaluate", EXPERT_0, *option).refused(2, " ".join(option).partition("=")[0], "f1, precision, recall, auroc")


def test_a_metric_that_warns(here, glue, torchmetrics):
    tensors = load_file("data/test.safetensors")
    kept = tensors["labels"] != 3
    save_file({name: tensor[kept] for name, tensor in tensors.items()}, "data/test.safetensors")
    answer = glue("evaluate", EXPERT_0, "--metric", "auroc", code=0)
    assert "warning: experts/expert-000.safetensors: No positive samples" in answer.err


@pytest.fixture
def regression(here):
    """A table whose y is a function of a and b, in place of the digits."""
    (here / "glue.yaml").write_text(REGRESSION)
    (here / "own.py").write_text(OWN)
    (here / "table").mkdir()
    for split, n in (("train", 200), ("test", 50)):
        rows = torch.rand(n, 2, generator=torch.Generator().manual_seed(n)).tolist()
        lines = [f"{a},{b},{100 + 3 * a - b}" for a, b in rows]
        (here / "table" / f"{split}.csv").write_text("\n".join(["a,b,y", *lines]))
    return here


def test_a_regression_from_end_to_end(regression, glue, torchmetrics):
    glue("train-expert", "--expert", 0, "-o", "e.safetensors", "-q", code=0)
    glue("train-expert", "--expert", 0, "-o", "e2.safetensors", "--seed", 1, "-q", code=0)
    glue("mix", "--method", "spsa", "e.safetensors", "e2.safetensors", "-q", code=0)
    history = glue("finetune", "prior.safetensors", "--json", code=0).json["history"]
    [found] = glue("evaluate", "finetuned.safetensors", "--json", code=0).json["results"]
    assert history[-1]["val_mse"] < history[0]["val_mse"] and {"val_mae", "val_r2"} <= set(history[0])

    weights = load_file("finetuned.safetensors")
    table = [line.split(",") for line in (regression / "table/test.csv").read_text().splitlines()[1:]]
    inputs, y = torch.tensor([[float(x) for x in row] for row in table]).split([2, 1], 1)
    hidden = torch.tanh(inputs @ weights["0.weight"].T + weights["0.bias"])
    errors = (hidden @ weights["2.weight"].T + weights["2.bias"] - y).double()
    assert found["mse"] == found["loss"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert found["mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    spread = (y.double() - y.double().mean()).square().sum()
    assert found["r2"] == pytest.approx(1 - (errors.square().sum() / spread).item(), rel=1e-5)
    assert "class_accuracy" not in found
    assert glue("evaluate", "e.safetensors", "-q", code=0).out.splitlines()[0].split()[-1] == "r2"
    glue("evaluate", "e.safetensors", "--by-class").refused(2, "--by-class is for labels")


def test_a_regression_without_torchmetrics(regression, glue, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics")

    glue("finetune", "--from-scratch", "-q", code=0)
    monkeypatch.setattr("glue_cli.running.metrics.import_with_torchvision", refuse)
    answer = glue("evaluate", "finetuned.safetensors", "--json", code=0)
    assert {"loss", "mse"} <= set(answer.json["results"][0]) and "r2" not in answer.json["results"][0]
    assert "for mae, r2 wanted torchmetrics, which is not installed: pip install 'glue-cli[metrics]'" in answer.err
    glue("evaluate", "finetuned.safetensors", "--fail-under", "r2=0").refused(2, "torchmetrics", "pip install")


def test_models_that_know_classes_in_different_orders_share_a_table(here, glue, experts):
    names = [f"digit {i}" for i in range(10)]
    for split in ("train", "test"):
        tensors = load_file(f"data/{split}.safetensors")
        save_file(tensors, f"data/{split}.safetensors", {"class_names": json.dumps(names)})
    tensors = load_file(EXPERT_0)
    for name, order in (("as-data", names), ("turned", names[::-1])):
        head = {key: tensor.flip(0) for key, tensor in tensors.items() if key.startswith("head")}
        rows = tensors | head if name == "turned" else tensors
        write_checkpoint(Path(f"{name}.safetensors"), rows, {"class_names": order})
    paths = ["as-data.safetensors", "turned.safetensors"]
    found = glue("evaluate", *paths, "--json", code=0).json["results"]
    assert found[0]["class_accuracy"] == found[1]["class_accuracy"] and found[0]["accuracy"] == found[1]["accuracy"]
    assert list(found[1]["class_accuracy"]) == names[::-1]
    rows = [line.split() for line in glue("evaluate", *paths, "--by-class", "-q", code=0).out.splitlines()]
    rows = [row for row in rows if row[:1] == ["digit"]]
    assert len(rows) == 10 and all(row[2] == row[-2] for row in rows)
