"""What people can ask of a search: a budget, an explanation, another objective."""

import json

import pytest


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "cmaes", "greedy"])
@pytest.mark.parametrize("budget", [40, 100])
def test_a_budget_of_forwards_is_kept(here, glue, experts, method, budget):
    result = glue("mix", "--method", method, *experts, "--budget", budget, "--json", code=0).json
    cost = result["cost"]
    least = 0 if method == "greedy" else budget / 2  # greedy needs no more than five validations
    assert least < cost["forwards"] + 2 * cost["backwards"] <= budget
    assert result["settings"]["mix"]["budget"] == str(budget)


def test_a_budget_of_examples_is_kept(here, glue, experts):
    result = glue("mix", "--method", "spsa", *experts, "--budget", "1500ex", "--json", code=0).json
    assert 750 < result["cost"]["examples"] <= 1500 and result["stopped"] == "budget"


@pytest.mark.parametrize(
    "how", [["spsa"], ["spsa", "--set", "mix.search=plain"], ["spsa", "--set", "mix.preset=paper"], ["fullgrad"]]
)
def test_a_budget_of_time_ends_the_search(here, glue, experts, how):
    patient = ["--set", "mix.patience=10000"]
    result = glue("mix", "--method", *how, *experts, "--budget", "1.5s", *patient, "--json", code=0).json
    assert result["stopped"] == "budget" and result["steps"] > 0


@pytest.mark.parametrize("budget", ["", "0", "-3", "many", "3x", "1e999"])
def test_a_budget_that_is_none(here, glue, experts, budget):
    glue("mix", "--method", "spsa", *experts, f"--budget={budget}").refused(2, "--budget", "no budget")


def test_a_budget_that_is_none_in_the_spec(here, glue, experts):
    glue("mix", "--method", "spsa", *experts, "--set", "mix.budget=3x").refused(2, "mix.budget", "3x")


@pytest.mark.parametrize("method", ["uniform", "data-size"])
def test_methods_that_run_no_expert_have_no_bank(here, glue, experts, method):
    glue("mix", "--method", method, *experts, "--bank", "disk").refused(2, "--bank is for methods that run", "proxy")


@pytest.mark.parametrize("option", [("--budget", "300"), ("--explain",)])
@pytest.mark.parametrize("method", ["uniform", "data-size", "proxy"])
def test_methods_that_do_not_search_have_neither(here, glue, experts, method, option):
    glue("mix", "--method", method, *experts, *option).refused(2, f"{option[0]} is for a search", "spsa")


def test_stages_and_guard_are_accounted_for(here, glue, experts):
    result = glue("mix", "--method", "spsa", *experts, "--budget", "100", "--json", code=0).json
    search, cost = result["search"], result["cost"]
    assert [stage["stage"] for stage in search["stages"]] == ["screen", "race", "descend", "guard", "write"]
    assert sum(stage["forwards"] for stage in search["stages"]) == cost["forwards"]
    guard, write = (stage["forwards"] for stage in search["stages"][-2:])
    assert 0 < guard <= 15 and write == result["afterwards"]["forwards"]
    assert search["start"] in search["starts"] and "uniform" in search["starts"]
    losses = {"end": search["guard"]["end_loss"]} | {r["name"]: r["loss"] for r in search["guard"]["rivals"]}
    assert search["guard"]["loss"] == losses[search["returned"]]
    (evaluated,) = glue("evaluate", "prior.safetensors", "--split", "val", "--json", code=0).json["results"]
    assert result["loss"]["val"] == pytest.approx(evaluated["loss"], rel=1e-4)


def test_an_explanation_says_what_each_expert_is_worth(here, glue, experts):
    answer = glue("mix", "--method", "spsa", *experts, "--budget", "60", "--explain", "--json", code=0)
    assert len(answer.json["left_out"]) == 3
    explained = answer.json["search"]["stages"][-1]
    assert answer.json["afterwards"]["forwards"] >= explained["forwards"] > 0 and explained["stage"] == "explain"
    for alpha, left_out in zip(answer.json["alpha"], answer.json["left_out"], strict=True):
        assert left_out["difference"] != 0 if alpha > 0.05 else abs(left_out["difference"]) < 0.2
    shown = glue("mix", "--method", "spsa", *experts, "--budget", "60", "--explain", "-f", code=0).out
    assert "loss without it" in shown and "end of the search" in shown and "starts\n" in shown


@pytest.mark.parametrize("how", [["spsa"], ["spsa", "--set", "mix.search=plain"], ["greedy"]])
def test_accuracy_is_shown_as_accuracy(here, glue, experts, how):
    call = ["mix", "--method", *how, *experts, "--set", "objective=accuracy", "--budget", "100", "-f"]
    answer = glue(*call, "--json", code=0)
    objective, loss = answer.json["objective"], answer.json["loss"]
    assert objective["name"] == "accuracy" and loss == {} and 0 <= objective["val"] <= 1
    (evaluated,) = glue("evaluate", "prior.safetensors", "--split", "val", "--json", code=0).json["results"]
    assert evaluated["accuracy"] == pytest.approx(objective["val"], abs=1e-6)
    assert f"{objective['val']:.4f}" in glue(*call, code=0).out


def test_a_function_of_the_users_is_searched(here, glue, experts):
    (here / "scoring.py").write_text("def right(outputs, targets):\n    return (outputs.argmax(1) == targets).sum()\n")
    call = ["mix", "--method", "spsa", *experts, "--set", "objective=python:scoring:right", "--budget", "100"]
    objective = glue(*call, "--json", code=0).json["objective"]
    assert objective["name"] == "python:scoring:right" and 0 <= objective["val"] <= 30  # of a minibatch


def test_fullgrad_needs_a_derivative(here, glue, experts):
    glue("mix", "--method", "fullgrad", *experts, "--set", "objective=f1").refused(3, "fullgrad", "spsa")


@pytest.mark.parametrize(
    ("arguments", "planned"),
    [
        (["spsa"], {"steps_at_most": 4, "forwards_a_step": 3}),
        (["spsa", "--budget", "90"], {"budget": "90", "forwards_a_step": 3}),
        (["spsa", "--set", "mix.groups.head=head.*"], {"forwards_a_step": 3, "forwards_a_step_by_group": 5}),
        (["spsa", "--set", "mix.preset=paper", "--set", "mix.n_directions=3"], {"forwards_a_step": 6}),
        (["spsa", "--set", "mix.optimizer=adam"], {"forwards_a_step": 2}),
        (["spsa", "--set", "objective=accuracy"], {"forwards_a_step": 2}),
        (["greedy"], {"validations_at_most": 12}),
        (["greedy", "--batchnorm", "average"], {"validations_at_most": 6}),
        (["greedy", "--budget", "2m"], {"budget": "2m", "validations_at_most": 12}),
        (["fullgrad", "--budget", "2m"], {"budget": "2m"}),
    ],
    ids=lambda found: " ".join(found) if isinstance(found, list) else "",
)
def test_a_dry_run_says_what_may_be_spent(here, glue, experts, arguments, planned):
    plan = glue("mix", "--method", *arguments, *experts, "--dry-run", "--json", code=0).json
    assert {key: plan.get(key) for key in planned} == planned
    assert ("budget" in plan) == ("--budget" in arguments)
    assert not ("budget" in plan and "steps_at_most" in plan)


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
def test_a_step_costs_what_the_dry_run_said(here, glue, experts, optimizer):
    groups = ["--set", "mix.groups.head=head.*", "--set", f"mix.optimizer={optimizer}"]
    call = ["mix", "--method", "spsa", *experts, *groups, "--budget", "60", "--json"]
    planned = glue(*call, "--dry-run", code=0).json["forwards_a_step"]
    glue(*call, "--history", "h.jsonl", code=0)
    spent = [json.loads(line)["forwards"] for line in (here / "h.jsonl").read_text().splitlines()]
    n_contenders = 1 if optimizer == "adam" else 2  # that race for the first steps
    assert (spent[2] - spent[1]) in (planned, n_contenders * planned)  # between the first two steps


@pytest.mark.parametrize(
    ("objective", "forwards"), [("loss", 3), ("accuracy", 5), ("f1", 5), ("python:scoring:right", 2)]
)
def test_what_follows_the_loss_is_approached_by_it(here, glue, experts, objective, forwards):
    (here / "scoring.py").write_text("def right(outputs, targets):\n    return (outputs.argmax(1) == targets).sum()\n")
    groups = ["--set", "mix.groups.head=head.*", "--set", f"objective={objective}"]
    glue("mix", "--method", "spsa", *experts, *groups, "--budget", "60", "--history", "h.jsonl", code=0)
    spent = [json.loads(line)["forwards"] for line in (here / "h.jsonl").read_text().splitlines()]
    assert spent[2] - spent[1] == forwards  # of Gauss-Newton's second step, or of a pair of probes


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_a_budget_too_small_for_the_search_says_so(here, glue, experts, budget):
    shown = glue("mix", "--method", "spsa", *experts, "--budget", budget, code=0).out
    assert "the budget had no room for" in shown and "nothing could be" not in shown


def test_settings_of_no_effect_are_named(here, glue, experts):
    call = ["mix", "--method", "spsa", *experts, "--budget", "40", "-f", "--set"]
    assert "mix.lr: of no effect on Gauss-Newton's steps" in glue(*call, "mix.lr=0.5", code=0).err
    assert "mix.mu: of no effect" in glue(*call, "mix.mu=0.2", code=0).err
    assert "no effect" not in glue(*call, "mix={optimizer: adam, lr: 0.5, batch_size: 30}", code=0).err


def test_the_blend_records_what_its_search_took(here, glue, experts):
    result = glue("mix", "--method", "spsa", *experts, "--budget", "0.4s", "--json", code=0).json
    searched = result["settings"]["search"]
    after = result["afterwards"]["forwards"]
    assert searched["forwards"] == result["cost"]["forwards"] - after > 0 and searched["stopped"] == "budget"
    assert searched["returned"] == result["search"]["returned"] and searched["start"] == result["search"]["start"]
