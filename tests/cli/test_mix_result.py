"""What people read of a blend and of the search behind it, from results made up for the case."""

import pytest

from glue_cli.cli.show_mix import show_mix
from glue_cli.results.mix import MixResult
from glue_cli.results.record import read_record

PATHS = [f"experts/expert-00{k}.safetensors" for k in range(3)]


def make_result(paths=PATHS, **others):
    cost = {"forwards": 1200, "validation_forwards": 1, "backwards": 0, "examples": 1, "wall_s": 2, "peak_bytes": 1e6}
    return {
        "method": "spsa",
        "experts": [{"path": path} for path in paths],
        "alpha": [1 / len(paths)] * len(paths),
        "output": "prior.safetensors",
        "loss": {},
        "steps": 9,
        "stopped": "budget",
        "cost": cost,
        **others,
    }


def test_alphas_of_groups_are_shown_as_mean_and_range(capsys):
    groups = {"stem": [0.5, 0.5, 0], "head": [0, 0.5, 0.5]}
    record = make_result(groups=groups, alpha=[0.25, 0.5, 0.25])
    show_mix(read_record(MixResult, record))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert "expert alpha, mean of 2 groups lowest highest".split() in lines
    assert [PATHS[0], "0.2500", "0.0000", "0.5000"] in lines and [PATHS[1], *["0.5000"] * 3] in lines


def make_rival(name, difference, error=0.01):
    return {"name": name, "loss": 0.5 + difference, "difference": difference, "standard_error": error}


def make_search(rivals=(), *, terms=200, end_loss=0.5, start="towards expert 1", returned="end", starts=7, stages=()):
    names = [start, *(f"towards expert {k}" for k in range(10, 9 + starts))]
    return {
        "start": start,
        "starts": dict.fromkeys(names, 0.6),
        "stages": list(stages),
        "returned": returned,
        "guard": {"terms": terms, "end_loss": end_loss, "rivals": [make_rival(*rival) for rival in rivals]},
    }


@pytest.fixture
def shown(capsys):
    """Return the lines that are shown of a result."""

    def show(result):
        show_mix(read_record(MixResult, result))
        return capsys.readouterr().out.splitlines()

    return show


@pytest.fixture
def cells(shown):
    """Return the cells of the row that begins with a text."""

    def find(result, begin):
        (line,) = (line for line in shown(result) if line.startswith(begin))
        return [cell.strip() for cell in line.split("   ") if cell.strip()]

    return find


RIVALS = [("uniform", 0.2), ("runner-up", -0.00001), ("towards expert 1", 0.0, 0.0), ("expert 2", 0.7, None)]


def test_the_guard_compares_the_end_with_blends_by_name(cells):
    result = make_result(search=make_search(RIVALS))
    assert cells(result, "on 200 held-out examples")[1:] == ["loss", "loss beyond the end's"]
    assert cells(result, "end of the search")[1:] == ["0.5000", "-"]
    assert cells(result, "uniform blend")[1:] == ["0.7000", "+0.2000 ± 0.0100"]
    assert cells(result, "start: half-way to expert-001")[1:] == ["0.5000", "0.0000 ± 0.0000"]
    assert cells(result, "runner-up of the race")[1:] == ["0.5000", "0.0000 ± 0.0100"]
    assert cells(result, "expert-002")[1:] == ["1.2000", "+0.7000"]


def test_more_is_better_of_a_figure_that_is_no_loss(cells):
    result = make_result(search=make_search(RIVALS, terms=4), objective={"name": "f1"})
    assert cells(result, "on 4 held-out minibatches")[1:] == ["f1", "f1 beyond the end's"]
    assert cells(result, "uniform blend")[1:] == ["0.3000", "-0.2000 ± 0.0100"]
    assert cells(result, "runner-up of the race")[2] == "0.0000 ± 0.0100"


def test_a_function_of_the_users_goes_by_its_own_name(cells):
    result = make_result(search=make_search(RIVALS, terms=4), objective={"name": "python:scoring:accuracy"})
    assert cells(result, "on 4 held-out minibatches")[1:] == ["accuracy", "accuracy beyond the end's"]
    assert cells(result, "end of the search")[1] == "-0.5000"


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("uniform", "started from the uniform blend, the best of 7 starts"),
        ("by loss", "started from the softmax of the losses, the best of 7 starts"),
        ("towards expert 1", "started half-way to expert-001, the best of 7 starts"),
    ],
)
def test_the_start_is_named(shown, start, sentence):
    assert sentence in shown(make_result(search=make_search(RIVALS, start=start)))


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("uniform", "the guard returned the uniform blend instead"),
        ("runner-up", "the guard returned the runner-up of the race instead"),
        ("by loss", "the guard returned the softmax of the losses instead"),
        ("towards expert 1", "the guard returned the start half-way to expert-001 instead"),
        ("expert 2", "the guard returned expert-002 instead"),
    ],
)
def test_what_the_guard_returned_is_named(shown, returned, sentence):
    assert sentence in shown(make_result(search=make_search(RIVALS, returned=returned)))


def test_nothing_is_said_of_a_guard_that_agreed(shown):
    assert not any("the guard" in line for line in shown(make_result(search=make_search(RIVALS))))


@pytest.mark.parametrize(
    ("search", "objective", "sentence"),
    [
        ({"terms": 0, "end_loss": None}, "loss", "the budget had no room for the guard"),
        ({"terms": 60}, "loss", "the budget had no room for the guard; validation loss 0.5000"),
        ({"terms": 60, "end_loss": 0.25}, "f1", "the budget had no room for the guard; validation f1 0.7500"),
        (
            {"terms": 1, "rivals": [("uniform", 0.2, None)]},
            "loss",
            "a single held-out example: nothing could be compared; validation loss 0.5000",
        ),
        (
            {"terms": 1, "end_loss": None},
            "f1",
            "a single held-out minibatch: nothing could be compared",
        ),
    ],
)
def test_a_guard_that_could_not_compare_says_why(shown, search, objective, sentence):
    others = {} if objective == "loss" else {"objective": {"name": objective}}
    lines = shown(make_result(search=make_search(**search), **others))
    assert sentence in lines and not any("beyond the end's" in line for line in lines)


@pytest.mark.parametrize(("method", "lack"), [("spsa", "a step"), ("fullgrad", "a step"), ("greedy", "two experts")])
def test_a_budget_without_room_for_a_step(shown, method, lack):
    lines = shown(make_result(method=method, steps=0))
    assert f"the budget had no room for {lack}" in lines


def test_a_single_expert_needs_no_steps(shown):
    lines = shown(make_result(PATHS[:1], steps=0, stopped="steps"))
    assert not any("step" in line or "budget" in line for line in lines)


def test_one_is_no_plural(shown):
    cost = {"forwards": 1, "validation_forwards": 0, "backwards": 1, "examples": 1, "wall_s": 2, "peak_bytes": 1e6}
    lines = shown(make_result(steps=1, cost=cost, search=make_search(RIVALS, terms=1, starts=1)))
    assert "started half-way to expert-001, the only start" in lines
    assert "1 step, ended with the budget" in lines
    assert "1 forward (0 for validation), 1 backward, 1 example" in lines


@pytest.mark.parametrize(
    ("ingredients", "sentence"),
    [
        ([2], "expert-002 alone, the best of 3 experts tried"),
        ([2, 0], "the mean of 2 of 3 experts tried: expert-002, expert-000"),
    ],
)
def test_a_soup_names_its_experts(shown, ingredients, sentence):
    result = make_result(method="greedy", steps=3, stopped="steps", search={"ingredients": ingredients, "losses": []})
    assert sentence in shown(result)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["v1.5/model.safetensors", "v1.6/model.safetensors"], ["v1.5", "v1.6"]),
        (["bert-v1.5", "bert-v1.6/"], ["bert-v1.5", "bert-v1.6"]),
        (["a/expert.safetensors", "b/expert.safetensors"], ["a/expert.safetensors", "b/expert.safetensors"]),
        (["x/model.safetensors.index.json", "y.pt"], ["x", "y.pt"]),
        (["x expert 0.safetensors", "[bold].safetensors"], ["x expert 0", "[bold]"]),
    ],
)
def test_every_expert_has_a_name_of_its_own(shown, paths, names):
    result = make_result(paths, method="greedy", steps=2, search={"ingredients": [0, 1], "losses": []})
    assert f"the mean of 2 of 2 experts tried: {', '.join(names)}" in shown(result)


STAGES = [
    {"stage": "screen", "forwards": 14, "loss_before": 0.736, "loss_after": 0.478},
    {"stage": "race", "forwards": 0, "loss_before": None, "loss_after": None},
    {"stage": "descend", "forwards": 1071, "loss_before": 0.5, "loss_after": 0.25},
    {"stage": "guard", "forwards": 15, "loss_before": None, "loss_after": None},
    {"stage": "explain", "forwards": 16},
]


def test_each_stage_says_what_it_spent_and_bought(shown, cells):
    result = make_result(search=make_search(RIVALS, stages=STAGES))
    assert cells(result, "stage") == ["stage", "forwards", "loss before", "loss after"]
    assert cells(result, "screening")[1:] == ["14", "0.7360", "0.4780"]
    assert cells(result, "descent")[1:] == ["1,071", "0.5000", "0.2500"]
    assert cells(result, "guard")[1:] == ["15", "-", "-"]
    assert cells(result, "explanation")[1:] == ["16", "-", "-"]
    assert not any(line.startswith("race") for line in shown(result))  # it was not run


def test_a_stage_of_a_search_for_accuracy_speaks_of_accuracy(cells):
    result = make_result(search=make_search(RIVALS, stages=STAGES), objective={"name": "accuracy"})
    assert cells(result, "stage")[2:] == ["accuracy before", "accuracy after"]
    assert cells(result, "descent")[2:] == ["0.5000", "0.7500"]


def test_stages_without_figures_have_no_columns_for_them(cells):
    stages = [{"stage": stage["stage"], "forwards": stage["forwards"]} for stage in STAGES]
    assert cells(make_result(search=make_search(RIVALS, stages=stages)), "stage") == ["stage", "forwards"]


def test_an_expert_that_cannot_be_left_out_has_a_dash(cells):
    gone = {"loss": None, "difference": None, "standard_error": None}
    nothing = {"loss": 0.5, "difference": -0.0, "standard_error": 0.0}
    result = make_result(left_out=[gone, nothing, {"loss": 9e9, "difference": 9e9, "standard_error": 1e7}])
    assert cells(result, PATHS[0])[2] == "-"
    assert cells(result, PATHS[1])[2] == "0.0000 ± 0.0000"
    assert cells(result, PATHS[2])[2] == "+9e+09 ± 1e+07"


def test_tables_fit_a_terminal_of_80_columns(shown):
    result = make_result(search=make_search(RIVALS, stages=STAGES), objective={"name": "accuracy"})
    assert max(map(len, shown(result))) <= 80
