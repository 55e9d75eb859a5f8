import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from glue_cli.spec.schema import PRESETS, ExpertsSpec, FinetuneSpec, MixSpec, Spec

LEAST = {"model": {"arch": "cnn"}, "data": {"format": "safetensors", "root": "data"}}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_everything_and_explicit_keys_win(preset):
    filled = MixSpec.model_validate({"preset": preset}).model_dump()
    assert filled | PRESETS[preset] == filled and filled["preset"] == preset
    own = MixSpec.model_validate({"preset": preset, "lr": 0.5, "betas": [0.1, 0.2]}).model_dump()
    assert own == filled | {"lr": 0.5, "betas": [0.1, 0.2]}


def test_the_paper_preset_is_what_the_paper_states():
    paper = MixSpec.model_validate({"preset": "paper"})
    assert (paper.optimizer, paper.lr, paper.betas, paper.n_directions) == ("adam", 0.01, [0.9, 0.99], 1)
    assert paper.directions == "gaussian" and not paper.zero_sum


def test_no_preset_is_the_default_one():
    beyond = {"preset": "default", "bn_gradient": True, "bn_statistics": "running", "groups": {}, "budget": None}
    assert MixSpec.model_validate({}).model_dump() == {**beyond, **PRESETS["default"]}
    assert Spec.model_validate(LEAST).mix == MixSpec.model_validate({})


@pytest.mark.parametrize("preset", ["papers", None, ["paper"], 5, True])
def test_an_unknown_preset_is_one_fault(preset):
    with pytest.raises(ValidationError) as caught:
        MixSpec.model_validate({"preset": preset})
    assert [error["loc"] for error in caught.value.errors()] == [("preset",)]


@pytest.mark.parametrize(
    "given", [{}, {"count": 5}, {"size": 5}, {"count": 2, "members": [{"name": "a", "data": LEAST["data"]}]}]
)
def test_experts_are_shares_or_members(given):
    with pytest.raises(ValidationError, match="'count' and 'size'"):
        ExpertsSpec.model_validate(given)


def test_the_number_of_experts():
    assert ExpertsSpec.model_validate({"count": 5, "size": 10}).n_experts == 5
    members = [{"name": name, "data": LEAST["data"]} for name in "ab"]
    assert ExpertsSpec.model_validate({"members": members}).n_experts == 2


def test_paths_are_looked_up_from_the_specs_own_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    spec = Spec.model_validate(LEAST)
    located = spec.located_in(Path("/specs"))
    assert located.model_dump() == spec.model_dump()
    assert located.path("data/x") == Path("/specs/data/x") and spec.path("data/x") == Path("data/x")
    assert located.path("/abs") == Path("/abs") and located.path("~/x") == Path("/home/ann/x")
    assert located.path("~nobody-of-that-name/x") == Path("/specs/~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", "0.1"),
        ("lr", True),
        ("betas", [0.9]),
    ]
    + [("betas", [0.9, 1.0]), ("steps", 0), ("steps", 1.5), ("mu", 0.0), ("zero_sum", 1), ("optimizer", "sgd")],
)
def test_values_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        MixSpec.model_validate({key: value})
    assert {error["loc"][0] for error in caught.value.errors()} == {key}


@pytest.mark.parametrize("objective", ["loss", "accuracy", "f1", "python:my_code:score"])
def test_what_mixing_may_search_for(objective):
    assert Spec.model_validate({**LEAST, "objective": objective}).objective == objective
    assert Spec.model_validate(LEAST).objective == "loss"


def test_a_finetuning_chooses_its_lr_and_keeps_the_best_unless_it_is_the_papers():
    plain, paper = FinetuneSpec.model_validate({}), FinetuneSpec.model_validate({"preset": "paper"})
    assert (plain.lr, plain.keep, plain.epochs) == ("auto", "best", 20)
    assert (paper.lr, paper.keep, paper.epochs) == (0.001, "last", 20)
    own = FinetuneSpec.model_validate({"preset": "paper", "lr": "auto", "epochs": 3})
    assert (own.lr, own.keep, own.epochs) == ("auto", "last", 3)
    assert FinetuneSpec.model_validate({"lr": 1}).lr == 1.0


@pytest.mark.parametrize("lr", ["fast", 0, -0.1, True, None, [0.1], math.inf, math.nan])
def test_an_lr_that_is_none(lr):
    with pytest.raises(ValidationError, match="wanted a number greater than 0 or 'auto'"):
        FinetuneSpec.model_validate({"lr": lr})
