"""The four workflows as a library: what they return, whom they tell, and that precision is chosen once."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.foundation.progress import Advanced, Noted, Started
from glue_cli.foundation.run import Run
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import Coefficients
from glue_cli.plans.outputs import Outputs
from glue_cli.plans.train_expert import plan_train_expert
from glue_cli.results.record import as_object
from glue_cli.running.timing import PRECISIONS, Way
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.mix.mix import mix
from glue_cli.workflows.train_expert import train_expert
from glue_cli.workflows.training import training_step


@pytest.fixture
def experts(spec, run, tmp_path, events):
    paths = [tmp_path / f"e{k}.safetensors" for k in range(3)]
    for k, path in enumerate(paths):
        train_expert(plan_train_expert(spec, k, Outputs(path)), run)
    events.clear()
    return paths


def blend(experts, spec, run, output, method="spsa", **rules):
    plan = plan_mix(
        experts, Outputs(output), Coefficients(method), rules=TensorRules(**rules), spec=spec, seed=spec.seed
    )
    return as_object(mix(plan, run))


def test_the_search_tells_its_steps_and_keeps_the_best_alpha(make_spec, run, experts, tmp_path, events):
    spec = make_spec(mix={"search": "plain", "steps": 12, "validate_every": 3, "batch_size": 20, "lr": 0.5})
    history = tmp_path / "h.jsonl"
    result = blend(experts, spec, Run("cpu", progress=run.progress, history=history), tmp_path / "p.safetensors")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    validated = [line for line in lines if line["val_loss"] is not None]
    assert [line["step"] for line in validated] == [0, 3, 6, 9, 12][: len(validated)]
    best = min(validated, key=lambda line: line["val_loss"])
    assert result["alpha"] == best["alpha"] and result["loss"]["val"] == best["val_loss"]
    assert result["loss"]["val_uniform"] == lines[0]["val_loss"] and lines[0]["alpha"] == pytest.approx([1 / 3] * 3)
    shown = [event for event in events if isinstance(event, Advanced) and event.alpha]
    assert [list(event.alpha) for event in shown] == [line["alpha"] for line in lines]
    assert [event.task for event in events if isinstance(event, Started)] == ["mix by spsa", "blend"]


def test_the_reported_loss_is_that_of_the_written_blend(spec, run, experts, tmp_path):
    for method in ("spsa", "fullgrad"):
        output = tmp_path / f"{method}.safetensors"
        result = blend(experts, spec, run, output, method)
        found = evaluate(plan_evaluate(spec, [output], "val", {}, Outputs(None)), run).results[0].figures
        assert found["loss"] == pytest.approx(result["loss"]["val"], rel=1e-4)


def test_methods_see_the_same_minibatches(make_spec, run, experts, tmp_path, monkeypatch):
    from glue_cli.data.loader import Batches

    seen, original = [], Batches.at_step
    monkeypatch.setattr(
        Batches,
        "at_step",
        lambda self, step, size, seed: seen.append((step, size, seed)) or original(self, step, size, seed),
    )
    spec = make_spec(mix={"search": "plain", "steps": 6, "validate_every": 2, "patience": 9, "batch_size": 20})
    blend(experts, spec, run, tmp_path / "a.safetensors", "spsa")
    by_spsa = seen.copy()
    seen.clear()
    blend(experts, spec, run, tmp_path / "b.safetensors", "fullgrad")
    assert by_spsa == seen == [(step, 20, 0) for step in range(6)]


def test_proxy_weighs_by_validation_accuracy(spec, run, experts, tmp_path):
    result = blend(experts, spec, run, tmp_path / "p.safetensors", "proxy", batchnorm="average")
    found = evaluate(plan_evaluate(spec, experts, "val", {}, Outputs(None)), run).results
    accuracies = [one.figures["accuracy"] for one in found]
    assert result["val_accuracies"] == accuracies
    assert result["alpha"] == pytest.approx([accuracy / sum(accuracies) for accuracy in accuracies])


def test_what_all_experts_share_goes_into_the_blend(make_spec, spec, run, experts, tmp_path):
    def model_of(path):
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["glue"]).get("model")

    blend(experts, spec, run, tmp_path / "p.safetensors", "uniform")
    assert model_of(tmp_path / "p.safetensors") == spec.model.model_dump()
    named_otherwise = make_spec(model={"arch": "cnn", "args": {"num_classes": 4, "in_channels": 1, "width": 4}})
    train_expert(plan_train_expert(named_otherwise, 0, Outputs(experts[0], force=True)), run)
    blend(experts, spec, run, tmp_path / "q.safetensors", "uniform")
    assert model_of(tmp_path / "q.safetensors") is None


def test_finetune_starts_at_the_checkpoint_and_keeps_what_it_says(make_spec, run, experts, tmp_path):
    data = {"format": "safetensors", "root": "data", "target": {"train": 60, "val": 55}}
    spec = make_spec(data=data, finetune={"epochs": 4, "batch_size": 20, "lr": 0.5})
    result = as_object(
        finetune(plan_finetune(spec, experts[0], Outputs(tmp_path / "f.safetensors"), track_test=False), run)
    )
    start = evaluate(plan_evaluate(spec, [experts[0]], "val", {}, Outputs(None)), run).results[0].figures
    assert result["history"][0]["val_loss"] == pytest.approx(start["loss"], rel=1e-5)
    best = min(line["val_loss"] for line in result["history"])
    kept = (
        evaluate(plan_evaluate(spec, [tmp_path / "f.safetensors"], "val", {}, Outputs(None)), run).results[0].figures
    )
    assert kept["loss"] == pytest.approx(best, rel=1e-5)


def test_evaluate_names_every_bar_that_was_missed(spec, run, experts, tmp_path):
    result = as_object(
        evaluate(plan_evaluate(spec, experts, "test", {"accuracy": 1.1}, Outputs(tmp_path / "r.json")), run)
    )
    assert [line.split(":")[0] for line in result["missed"]] == [str(path) for path in experts]
    assert json.loads((tmp_path / "r.json").read_text()) == result


@pytest.fixture
def steady(monkeypatch):
    """Let every timing count as steady, whatever else the machine does."""
    monkeypatch.setattr("glue_cli.running.timing.Timings.is_steady", True)


def test_precision_is_timed_once_recorded_and_reused(make_spec, run, tmp_path, events, steady):
    spec = make_spec(precision="auto")

    def train_again(name, **sections):
        events.clear()
        train_expert(plan_train_expert(make_spec(precision="auto", **sections), 0, Outputs(tmp_path / name)), run)
        return [event.text for event in events if isinstance(event, Noted) and "normalised" not in event.text]

    notes = train_again("a.safetensors")
    assert len(notes) == 1 and "a step takes fp32" in notes[0]
    assert ["as timed before" in note for note in train_again("b.safetensors")] == [True]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()["glue"])
    assert recorded["precision"] in PRECISIONS and recorded["threads"] == 1
    other = train_again("c.safetensors", train={"epochs": 1, "batch_size": 30, "lr": 0.02})
    assert "a step takes fp32" in other[0]  # another batch size is another question
    events.clear()
    evaluate(plan_evaluate(spec, [tmp_path / "a.safetensors"], "test", {}, Outputs(None)), run)
    assert any("a step takes fp32" in event.text for event in events if isinstance(event, Noted))


def test_threads_are_chosen_for_the_command_alone_and_recorded(make_spec, run, tmp_path, monkeypatch):
    used = []

    def choose(*arguments, **options):
        return Way("fp32", 1)

    def step(*arguments):
        used.append(torch.get_num_threads())
        return training_step(*arguments)

    torch.set_num_threads(2)
    monkeypatch.setattr("glue_cli.workflows.compute.choose_way", choose)
    monkeypatch.setattr("glue_cli.workflows.training.training_step", step)
    path = tmp_path / "a.safetensors"
    result = train_expert(plan_train_expert(make_spec(precision="auto"), 0, Outputs(path)), run)
    assert set(used) == {1} and result.threads == 1 and torch.get_num_threads() == 2
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["glue"])["threads"] == 1


def test_the_precision_of_an_evaluation_does_not_depend_on_how_a_mix_is_made(
    spec, make_spec, run, tmp_path, monkeypatch
):
    """It is timed on the batch that it runs: of the 40 examples, all."""
    asked = []
    monkeypatch.setattr(
        "glue_cli.workflows.compute.choose_way", lambda *given, work, **rest: asked.append(work) or Way("fp32", 1)
    )
    path = tmp_path / "a.safetensors"
    train_expert(plan_train_expert(spec, 0, Outputs(path)), run)
    asked.clear()
    for batch_size in (20, 7):
        auto = make_spec(precision="auto", mix={"steps": 6, "batch_size": batch_size})
        evaluate(plan_evaluate(auto, [path], "test", {}, Outputs(None)), run)
        blend([path], auto, run, tmp_path / f"{batch_size}.safetensors", "proxy", batchnorm="average")
        blend([path], auto, run, tmp_path / f"{batch_size}-spsa.safetensors", "spsa")
    assert [work["batch_size"] for work in asked] == [40, 40, 20, 40, 40, 7]


@pytest.mark.parametrize("arch", ["resnet20", "vit"])
def test_other_architectures_in_both_precisions(make_spec, run, tmp_path, arch):
    args = {"num_classes": 4, "in_channels": 1}
    if arch == "vit":
        args |= {"image_size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2}
    for precision in PRECISIONS:
        spec = make_spec(
            model={"arch": arch, "args": args},
            precision=precision,
            train={"epochs": 1, "batch_size": 40, "lr": 0.001},
            mix={"steps": 2, "validate_every": 1, "batch_size": 20},
        )
        paths = [tmp_path / f"{precision}{k}.safetensors" for k in (0, 1)]
        for k, path in enumerate(paths):
            result = as_object(train_expert(plan_train_expert(spec, k, Outputs(path)), run))
            assert result["precision"] == precision
        for method in ("spsa", "fullgrad"):
            blend(paths, spec, run, tmp_path / f"{precision}-{method}.safetensors", method)
        assert {t.dtype for t in load_file(paths[0]).values()} <= {torch.float32, torch.int64}
