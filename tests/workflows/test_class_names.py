"""What a model's outputs are called, from the data to the results: situations that people have reported elsewhere.

The model is right on every example, if its outputs are taken for what they are.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stripes import stripes

from glue_cli.blend.tensor_rules import NO_RULES, TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, DataError
from glue_cli.foundation.progress import Noted
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.train_expert import train_expert

NAMES = ["ant", "bee", "cat", "dog"]  # by the row that is bright


@pytest.fixture
def save_data(tmp_path, data):
    """Write the stripes of these classes, and call the classes so; a class is numbered by its place."""

    def save(split, classes, called=None):
        called = called or classes
        tensors = stripes(240, 0) if split == "train" else stripes(40, 1)
        kept = torch.isin(tensors["labels"], torch.tensor([NAMES.index(name) for name in classes]))
        labels = torch.tensor([classes.index(NAMES[label]) for label in tensors["labels"][kept].tolist()])
        names = {"class_names": json.dumps(called)} if called != "unnamed" else None
        save_file(
            {"images": tensors["images"][kept].contiguous(), "labels": labels}, data / f"{split}.safetensors", names
        )

    return save


@pytest.fixture
def save_model(tmp_path):
    """Write a model whose largest output is that of the bright row; `said` is what it calls its classes."""

    def save(name, classes, said=None, *, config=False):
        weight = torch.zeros(len(classes), 8, 8)
        for k, of_class in enumerate(classes):
            weight[k, 2 * NAMES.index(of_class)] = 1.0
        tensors = {"1.weight": weight.flatten(1), "1.bias": torch.zeros(len(classes))}
        path = tmp_path / name
        if config:
            path.mkdir()
            save_file(tensors, path / "model.safetensors")
            (path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(said or classes))}))
        else:
            write_checkpoint(path, tensors, {"class_names": said or classes} if said != "unnamed" else {})
        return path

    return save


@pytest.fixture
def linear(make_spec, tmp_path):
    """Make a spec for such models."""
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef linear(n): return nn.Sequential(nn.Flatten(), nn.Linear(64, n))\n"
    )

    def make(n=4, **sections):
        return make_spec(model={"arch": "python:nets:linear", "args": {"n": n}}, **sections)

    return make


@pytest.fixture
def figures(run):
    """Evaluate checkpoints on the test split."""

    def evaluated(spec, *paths):
        return as_object(evaluate(plan_evaluate(spec, list(paths), "test", {}, Outputs(None)), run))["results"]

    return evaluated


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ["cat", "ant", "dog", "bee"]])
def test_the_order_of_the_folders_is_not_that_of_the_model(linear, save_data, save_model, figures, order, config):
    """LibreYOLO#348: the data are numbered by the alphabet, the checkpoint in an order of its own."""
    save_data("test", NAMES)
    [found] = figures(linear(), save_model("m", order, config=config))
    assert found["accuracy"] == 1.0 and list(found["class_accuracy"]) == order


def test_two_copies_of_a_data_set_swap_two_classes(linear, save_data, save_model, figures):
    """datasets#2457: entailment and contradiction of mnli have each other's number in another task's copy."""
    save_data("test", NAMES)
    paths = [save_model("x", NAMES), save_model("y", [NAMES[2], NAMES[1], NAMES[0], NAMES[3]]), save_model("z", NAMES)]
    results = figures(linear(), *paths)
    assert [line["accuracy"] for line in results] == [1.0] * 3
    assert [list(line["class_accuracy"])[0] for line in results] == ["ant", "cat", "ant"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)


def test_the_data_name_a_class_that_the_model_never_had(linear, save_data, save_model, figures, tmp_path, run):
    """datasets#6446: 36 names in the data, of which the model has 35; the last has no example in most copies."""
    save_data("test", NAMES[:3], called=[*NAMES[:3], "silence"])
    assert figures(linear(3), save_model("three", NAMES[2::-1]))[0]["accuracy"] == 1.0
    save_data("test", NAMES)
    with pytest.raises(DataError, match="'data' has classes that .*three does not have: dog") as caught:
        figures(linear(3), tmp_path / "three")
    assert [item.rpartition(": ")[2] for item in caught.value.items] == ["ant, bee, cat, dog", "cat, bee, ant"]


def test_the_splits_number_the_classes_apart(linear, save_data, save_model, figures, run, tmp_path):
    """CASA-Dialogue-Act-Classifier#10: the labels of each split are numbered by what is met first in it."""
    save_data("train", NAMES)
    save_data("test", NAMES[::-1])
    path = save_model("nameless", NAMES, "unnamed")
    assert figures(linear(), path)[0]["accuracy"] == 1.0
    spec = linear(finetune={"epochs": 1, "batch_size": 20, "lr": 1e-6})
    plan = plan_finetune(spec, path, Outputs(tmp_path / "tuned.safetensors"), track_test=True)
    found = as_object(finetune(plan, run))
    assert found["history"][-1]["test_accuracy"] == found["history"][-1]["val_accuracy"] == 1.0


def test_folders_called_by_numbers_are_sorted_as_text(linear, save_data, save_model, figures):
    """deit#130: the folders 0 to 234 in the order 0, 1, 10, 100; the model has them in the order of the numbers."""
    save_data("test", [NAMES[0], NAMES[1], NAMES[3], NAMES[2]], called=["0", "1", "3", "2"])
    assert figures(linear(), save_model("m", NAMES, list("0123"), config=True))[0]["accuracy"] == 1.0
    [found] = figures(linear(), save_model("words", NAMES))
    assert found["accuracy"] == 1.0 and list(found["class_accuracy"]) == NAMES


def test_where_one_side_has_numbers_alone_numbers_count(linear, save_data, save_model, figures):
    """optimum#197: a model with LABEL_0 and LABEL_1, and data that name their labels."""
    save_data("test", NAMES, called="unnamed")
    path = save_model("m", NAMES, ["w", "x", "y", "z"])
    assert list(figures(linear(), path)[0]["class_accuracy"].items()) == [(name, 1.0) for name in "wxyz"]
    save_data("test", NAMES)
    placeholders = save_model("p", NAMES, [f"LABEL_{k}" for k in range(4)], config=True)
    assert list(figures(linear(), placeholders)[0]["class_accuracy"].items()) == [(name, 1.0) for name in NAMES]


def test_finetuning_keeps_the_classes_of_the_checkpoint(linear, save_data, save_model, figures, run, tmp_path):
    order = ["cat", "ant", "dog", "bee"]
    for split in ("train", "test"):
        save_data(split, NAMES)
    spec = linear(finetune={"epochs": 1, "batch_size": 20, "lr": 1e-6})
    path = save_model("m", order)
    tuned = tmp_path / "tuned.safetensors"
    history = as_object(finetune(plan_finetune(spec, path, Outputs(tuned), track_test=True), run))["history"]
    assert history[0]["val_accuracy"] == history[0]["test_accuracy"] == 1.0
    assert read_checkpoint(tuned).glue["class_names"] == order
    torch.testing.assert_close(load_file(tuned), load_file(path), rtol=0, atol=1e-3)
    assert figures(spec, tuned)[0]["accuracy"] == 1.0
    other = save_model("other", NAMES, ["ant", "bee", "cat", "eel"])
    with pytest.raises(DataError, match="does not have: dog") as caught:
        finetune(plan_finetune(spec, other, Outputs(tmp_path / "no.safetensors"), track_test=False), run)
    assert "experts.init" in caught.value.hint and not (tmp_path / "no.safetensors").exists()


def test_training_on_from_a_head_in_another_order(linear, save_data, save_model, figures, run, tmp_path):
    for split in ("train", "test"):
        save_data(split, NAMES)
    path = save_model("start.safetensors", ["cat", "ant", "dog", "bee"])
    spec = linear(
        experts={"count": 2, "size": 60, "init": path.name}, train={"epochs": 1, "batch_size": 20, "lr": 1e-6}
    )
    expert = tmp_path / "e.safetensors"
    train_expert(plan_train_expert(spec, 0, Outputs(expert)), run)
    assert read_checkpoint(expert).glue["class_names"] == NAMES
    assert figures(spec, expert)[0]["accuracy"] == 1.0
    scratch = plan_finetune(spec, None, Outputs(tmp_path / "f.safetensors"), track_test=True)
    assert as_object(finetune(scratch, run))["history"][0]["test_accuracy"] == 1.0


@pytest.mark.parametrize("how", [{"alpha": (0.5, 0.5)}, {"method": "spsa"}, {"method": "proxy"}])
def test_a_mix_knows_its_classes(linear, save_data, save_model, figures, run, tmp_path, how):
    order = ["cat", "ant", "dog", "bee"]
    for split in ("train", "test"):
        save_data(split, NAMES)
    spec = linear(mix={"steps": 2, "validate_every": 1, "batch_size": 20})
    paths = [save_model("x", order, config=True), save_model("y", order)]
    coefficients = Coefficients(how.get("method", GIVEN), how.get("alpha"))
    prior = tmp_path / "prior.safetensors"
    plan = plan_mix(paths, Outputs(prior), coefficients, spec=spec if "method" in how else None)
    result = as_object(mix(plan, run))
    assert result.get("val_accuracies", [1.0, 1.0]) == [1.0, 1.0]
    assert read_checkpoint(prior).glue["class_names"] == order and figures(spec, prior)[0]["accuracy"] == 1.0


def test_heads_in_different_orders(linear, save_data, save_model, figures, run, events, tmp_path):
    save_data("test", NAMES)
    paths = [save_model("x", NAMES), save_model("y", NAMES[::-1]), save_model("silent", NAMES, "unnamed")]

    def mixed(experts, rules=NO_RULES):
        coefficients = Coefficients(GIVEN, tuple([1 / len(experts)] * len(experts)))
        mix(plan_mix(experts, Outputs(tmp_path / "prior.safetensors", force=True), coefficients, rules=rules), run)
        return figures(linear(), tmp_path / "prior.safetensors")[0]

    with pytest.raises(CheckpointError, match="the experts know their classes in different orders") as caught:
        mixed(paths[:2])
    assert "--head '1.*' --head-policy align" in caught.value.hint and not (tmp_path / "prior.safetensors").exists()
    aligned = mixed(paths[:2], TensorRules(head="1.*", head_policy="align"))
    assert aligned["accuracy"] == 1.0 and list(aligned["class_accuracy"]) == NAMES
    torch.testing.assert_close(load_file(tmp_path / "prior.safetensors"), load_file(paths[0]))
    assert list(mixed(paths[1::-1], TensorRules(head="1.*", head_policy="from:y"))["class_accuracy"]) == NAMES[::-1]
    events.clear()
    assert mixed([paths[0], paths[2]])["accuracy"] == 1.0
    assert [event.text for event in events if isinstance(event, Noted) and event.warning][0].startswith(str(paths[2]))
