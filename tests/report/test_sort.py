"""Which method and seed a result belongs to."""

import pytest

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.units import name_of
from glue_cli.report.sort import sort_sources, styles_by_label
from glue_cli.report.sources import read_sources


@pytest.fixture
def runs(write, notes):
    """Write files into one run's folder and sort them."""

    def sort(**content):
        suffix = {dict: ".json", list: ".jsonl"}
        files = [write(f"row/seed-0/{name}{suffix[type(found)]}", found) for name, found in content.items()]
        return sort_sources(read_sources(files, notes))["row"]

    return sort


def test_a_label_is_the_name_of_the_blends_file(runs, make):
    results = {
        "a": make.mix("spsa-n2", "spsa"),
        "b": make.finetune("spsa-n2", [0.1, 0.2]),
        "c": make.finetune("scratch", [0.1, 0.2]),
        "d": make.finetune("uniform-refreshed", [0.1, 0.2]),  # its mix was not kept
    }
    (run,) = runs(**results)
    assert set(run.trials) == {"spsa-n2", "scratch", "uniform-refreshed"}
    assert run.trials["spsa-n2"].mix and run.trials["spsa-n2"].finetune


def test_a_blend_of_the_default_name_goes_by_its_method(runs, make):
    (run,) = runs(
        mix=make.mix("prior", "fullgrad"), tune=make.finetune("prior", [0.1, 0.2]), history=make.search("fullgrad")
    )
    assert set(run.trials) == {"fullgrad"}
    assert len(run.trials["fullgrad"].search) == 5
    (run,) = runs(tune=make.finetune("prior", [0.1], method="proxy"))
    assert set(run.trials) == {"proxy"}


def test_a_history_belongs_to_the_result_beside_it_to_its_output_or_to_its_name(runs, make):
    two = {"x": make.mix("spsa", "spsa"), "y": make.mix("spsa-n2", "spsa")}
    lines = make.search("spsa")
    both = runs(**two, **{"x-": lines})[0]  # neither beside a result nor named like a blend
    assert both.trials["spsa"].search and not both.trials["spsa-n2"].search
    told = make.search("spsa", output="runs/spsa-n2.safetensors")
    assert runs(**two, other=told)[0].trials["spsa-n2"].search
    named = runs(**{"spsa-n2-mix": lines})[0]
    assert named.trials["spsa-n2"].search and not named.trials["spsa-n2"].mix


def test_a_history_beside_its_result(write, make, notes):
    files = [write("row/x.json", make.mix("spsa-n4", "spsa")), write("row/y.json", make.mix("spsa", "spsa"))]
    files.append(write("row/x.jsonl", make.search("spsa")))
    (run,) = sort_sources(read_sources(files, notes))["row"]
    assert run.trials["spsa-n4"].search and not run.trials["spsa"].search


def test_a_finetuning_that_has_not_ended_is_read_from_its_history(runs, make):
    result = make.finetune("spsa", [0.1, 0.2, 0.3])
    lines = [
        {"schema": "glue.history/1", "command": "finetune", "start": "spsa.safetensors", **line}
        for line in result["history"][:2]
    ]
    assert len(runs(h=lines)[0].trials["spsa"].finetune.history) == 2
    assert len(runs(h=lines, r=result)[0].trials["spsa"].finetune.history) == 3


def test_experts_blends_and_finetuned_models_are_told_apart(runs, make):
    paths = [make.experts[1], "elsewhere/experts/mine.safetensors", "runs/spsa.safetensors"]
    evaluated = make.evaluate(dict.fromkeys([*paths, "runs/spsa-finetuned.safetensors"], 0.5))
    (run,) = runs(mix=make.mix("spsa", "spsa"), evaluated=evaluated)
    assert set(run.experts) == {"expert-001", "mine"}
    assert set(run.trials) == {"spsa"}
    assert run.trials["spsa"].evaluated["test"].figures["accuracy"] == 0.5


def test_a_plain_search_keeps_the_alpha_with_the_lowest_validation_loss(runs, make):
    lines = make.search("spsa", 6)  # validated at steps 0, 2, 4 and 6
    for line, val_loss in zip(lines[::2], [3.0, 1.0, 1.0, 2.0], strict=True):
        line["val_loss"] = val_loss
    assert runs(spsa=lines)[0].trials["spsa"].kept_step == 2  # the first of equals


def test_a_staged_search_keeps_what_its_guard_returns(runs, make):
    lines = make.staged("spsa", 5)
    lines[3]["val_loss"] = 0.1  # lower than the guard's
    assert runs(spsa=lines)[0].trials["spsa"].kept_step == 5
    lines[-1]["val_loss"] = None  # a guard that can afford nothing
    assert runs(spsa=lines)[0].trials["spsa"].kept_step == 5
    assert runs(spsa=lines[:-1])[0].trials["spsa"].kept_step is None  # it has not ended


def test_a_greedy_soup_keeps_that_of_its_last_line(runs, make):
    lines = [{**line, "val_loss": 0.5} for line in make.search("greedy", 3)[1:]]  # no step 0; equal losses
    assert runs(greedy=lines)[0].trials["greedy"].kept_step == 3


def test_what_a_search_minimised(runs, make):
    score = {"name": "accuracy", "val": 0.9, "val_uniform": 0.8}
    found = {
        "searched": make.mix("cmaes", "cmaes"),
        "searched-": make.search("cmaes", output="cmaes.safetensors"),
        "scored": make.mix("spsa", "spsa", steps=3, objective=score),
        "plain": make.mix("uniform", "uniform"),
        "alone": make.search("fullgrad", output="fullgrad.safetensors"),
    }
    (run,) = runs(**found)
    objectives = {label: trial.goal and trial.goal.name for label, trial in run.trials.items()}
    assert objectives == {"cmaes": "loss", "spsa": "accuracy", "uniform": None, "fullgrad": "loss"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"search": "staged", "optimizer": "auto"}, "GLUE, default search"),
        ({"search": "staged", "optimizer": "adam"}, "GLUE (SPSA)"),
        ({"search": "plain", "optimizer": "adam"}, "GLUE (SPSA)"),
        ({}, "GLUE (SPSA)"),
    ],
)
def test_glue_is_named_by_its_search(runs, make, settings, name):
    told = {"settings": {"mix": settings}}
    blends = {label: make.mix(label, "spsa", **told) for label in ("spsa", "spsa-refreshed")}
    styles = styles_by_label(runs(**blends, cma=make.mix("cmaes", "cmaes", **told)))
    assert {label: look.name for label, look in styles.items()} == {
        "spsa": name,
        "spsa-refreshed": f"{name}, BatchNorm refreshed",
        "cmaes": "CMA-ES",
    }


def test_seeds_by_different_searches_have_no_name_of_one(write, make, notes):
    told = [{"settings": {"mix": {"search": search, "optimizer": "auto"}}} for search in ("staged", "plain")]
    files = [write(f"row/seed-{seed}/m.json", make.mix("spsa", "spsa", **more)) for seed, more in enumerate(told)]
    assert styles_by_label(sort_sources(read_sources(files, notes))["row"])["spsa"].name == "GLUE (SPSA)"


@pytest.mark.parametrize(
    ("one", "other"),
    [("mix", "mix"), ("finetune", "finetune"), ("search", "search")],
)
def test_two_results_of_one_method_and_seed_contradict_each_other(runs, make, one, other):
    first = {
        "mix": make.mix("spsa", "spsa"),
        "finetune": make.finetune("spsa", [0.1, 0.2]),
        "search": make.search("spsa"),
    }
    second = {
        "mix": make.mix("spsa", "spsa", alpha=[1, 0, 0]),
        "finetune": make.finetune("spsa", [0.1, 0.3]),
        "search": make.search("spsa", 6),
    }
    with pytest.raises(DataError, match="'spsa' of 'row' with seed 0") as caught:
        runs(a=first[one], b=second[other])
    assert [item.rsplit("/", 1)[1].split(".")[0] for item in caught.value.items] == ["a", "b"]
    assert runs(a=first[one], b=first[one])  # the same twice is no fault


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"schema": "glue.mix/1"}, "method: field required"),
        ({"schema": "glue.finetune/1", "start": "scratch", "history": []}, "history has no epochs"),
        ({"schema": "glue.evaluate/1", "results": 3}, "results: "),
        ({"schema": "glue.train-expert/1"}, "output: "),
    ],
)
def test_a_result_that_lacks_something_is_damaged(runs, result, said):
    with pytest.raises(DataError, match="x.json' is damaged") as caught:
        runs(x=result)
    assert said in caught.value.message


def test_alpha_of_another_length_is_damaged(runs, make):
    with pytest.raises(DataError, match="2 coefficients for 3 experts"):
        runs(x=make.mix("spsa", "spsa", alpha=[0.5, 0.5]))
    lines = make.search("spsa")
    lines[2]["alpha"] = [0.5, 0.5]
    with pytest.raises(DataError, match="does not have the same length"):
        runs(x=lines)


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("a/spsa.safetensors", "spsa"),
        ("spsa.safetensors.index.json", "spsa"),
        ("books/model.safetensors", "books"),
        ("hub/books", "books"),
        ("model.safetensors", "model"),
    ],
)
def test_names_of_checkpoints(checkpoint, name):
    assert name_of(checkpoint) == name
