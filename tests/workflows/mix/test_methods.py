"""The methods beside spsa and fullgrad, from the experts' files to the prior's."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.foundation.errors import UsageError
from glue_cli.models import build_model
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import Coefficients, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.results.record import as_object
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix


@pytest.fixture
def experts(tmp_path):
    """Three CNNs around one, as nobody trained them."""
    paths = [tmp_path / f"e{k}.safetensors" for k in range(3)]
    for k, path in enumerate(paths):
        state, random = build_model("cnn", {"num_classes": 4, "width": 4}, seed=0).state_dict(), torch.Generator()
        random.manual_seed(k)
        for name in ("head.weight", "head.bias"):
            state[name] += torch.randn(state[name].shape, generator=random)
        save_file(state, path)
    return paths


@pytest.fixture
def plan(experts, tmp_path):
    def plan(method, spec):
        output = Outputs(tmp_path / "prior.safetensors")
        return plan_mix(experts, output, Coefficients(method), writing=Writing(hashing=False), spec=spec)

    return plan


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
@pytest.mark.parametrize("method", ["cmaes", "greedy"])
def test_the_reported_figure_is_that_of_the_written_blend(plan, make_spec, run, method, objective):
    spec = make_spec(objective=objective)
    result = as_object(mix(plan(method, spec), run))
    (found,) = evaluate(plan_evaluate(spec, [Path(result["output"])], "val", {}, Outputs(None)), run).results
    assert result["loss" if objective == "loss" else "objective"]["val"] == pytest.approx(
        found.figures[objective], rel=1e-4
    )


def test_a_greedy_soup_names_its_ingredients(plan, experts, spec, run):
    result = as_object(mix(plan("greedy", spec), run))
    ingredients = result["search"]["ingredients"]
    assert result["alpha"] == [1 / len(ingredients) if k in ingredients else 0 for k in range(3)]
    blend = load_file(result["output"])["head.bias"]
    mean = sum(load_file(experts[k])["head.bias"] for k in ingredients) / len(ingredients)
    torch.testing.assert_close(blend, mean)
    cost, n_written = result["cost"], 2 if result["statistics"] == "refreshed" else 0
    by_averaged, refreshes = 2 * 3 * 2, 2 * 3 * 2  # validations of two batches each; of four more, at most, refreshed
    assert cost["validation_forwards"] <= 2 * by_averaged + 2 * refreshes
    assert cost["forwards"] - cost["validation_forwards"] <= 4 * n_written


def test_a_missing_package_is_told_before_any_work(plan, spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UsageError, match="--method cmaes needs the package cmaes, which is not installed") as caught:
        plan("cmaes", spec)
    assert caught.value.hint == "pip install 'glue-cli[search]'"
    assert plan("spsa", spec).coefficients.method == "spsa"
