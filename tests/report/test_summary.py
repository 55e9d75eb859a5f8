"""Means, spreads, differences and budgets, against figures worked out by hand or by numpy."""

import numpy as np
import pytest

from glue_cli.report.sort import sort_sources
from glue_cli.report.sources import read_sources
from glue_cli.report.statistics import measure, stat
from glue_cli.report.summary import summarise


@pytest.fixture
def summary(write_runs, notes):
    """Write runs and sum them up."""

    def make(accuracies_of_seed):
        runs_of = sort_sources(read_sources(write_runs(accuracies_of_seed), notes))
        assert list(runs_of) == ["cifar10-resnet20"]
        return summarise("cifar10-resnet20", runs_of["cifar10-resnet20"])

    return make


def method(summary, label):
    (found,) = [method for method in summary.methods if method.label == label]
    return found


def test_statistics_over_seeds():
    values = [51.2, 48.9, 55.0]
    found = stat([*values, None])
    assert (found.n, found.mean) == (3, pytest.approx(np.mean(values)))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.se == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    assert stat([None]) is None


def test_of_one_seed_there_is_no_deviation():
    found = stat([48.9])
    assert (found.mean, found.sd, found.se, found.n) == (48.9, None, None, 1)


def test_a_curve_in_few_numbers():
    one, other = dict(enumerate([10, 1, 2, 3, 4, 5, 6, 7])), dict(enumerate([20, 3, 4, 5, 6, 7, 8, 9]))
    found = measure([one, other])
    assert [found.prior.mean, found.last.mean, found.tail.mean, found.epochs.mean] == [15, 8, 6, 5]
    assert found.prior.sd == pytest.approx(50**0.5)
    assert [(point.x, point.y.mean) for point in found.curve][:2] == [(0, 15), (1, 2)]


def test_differences_are_taken_seed_by_seed(summary):
    found = summary(
        {
            0: {"data-size": [0.1, 0.30, 0.40], "spsa": [0.3, 0.32, 0.46]},
            1: {"data-size": [0.1, 0.50, 0.60], "spsa": [0.3, 0.52, 0.62]},
            2: {"data-size": [0.1, 0.90, 0.90]},  # spsa is not done yet
        }
    )
    lead = method(found, "spsa").against["data-size"]
    assert lead.last.n == 2
    assert lead.last.mean == pytest.approx(4) and lead.last.sd == pytest.approx(8**0.5)
    assert lead.epochs.mean == pytest.approx(3)
    assert lead.prior.mean == pytest.approx(20) and lead.prior.sd == pytest.approx(0, abs=1e-9)
    assert method(found, "spsa").seeds == [0, 1]
    assert any("GLUE (SPSA) (2)" in note for note in found.notes)


def test_a_lead_is_negative_where_glue_loses(summary):
    found = summary({0: {"fullgrad": [0.3, 0.5, 0.6], "spsa": [0.3, 0.4, 0.2]}})
    lead = method(found, "spsa").against["fullgrad"]
    assert [point.y.mean for point in lead.curve] == pytest.approx([0, -10, -40])


def test_a_backward_counts_as_two_forwards(summary):
    found = summary({0: {"fullgrad": [0.3, 0.5], "spsa": [0.3, 0.4]}})
    # Forwards of steps 0, 2, 4 as `search_lines` has them: 3, 8, 13 for one a step; 3, 10, 17 for a pair.
    assert [(point.x, point.y.mean) for point in method(found, "fullgrad").search] == [
        (3, 3.0),
        (8 + 2 * 2, 2.8),
        (13 + 2 * 4, 2.6),
    ]
    assert [point.x for point in method(found, "spsa").search] == [3, 10, 17]


def test_backwards_that_a_history_tells_are_counted_and_not_guessed(write, make, notes):
    lines = [{**line, "backwards": 3 * line["step"]} for line in make.search("newton")]
    (runs,) = sort_sources(read_sources([write("newton.jsonl", lines)], notes)).values()
    (newton,) = summarise("row", runs).methods
    assert [point.x for point in newton.search] == [3, 10 + 2 * 6, 17 + 2 * 12]


def test_a_search_that_ended_early_keeps_its_last_loss(write, make, notes):
    long, short = make.search("spsa", 4), make.search("spsa", 2)
    files = [write("row/seed-0/spsa.jsonl", long), write("row/seed-1/spsa.jsonl", short)]
    runs = sort_sources(read_sources(files, notes))["row"]
    (spsa,) = summarise("row", runs).methods
    assert [(point.x, point.y.mean, point.y.n) for point in spsa.search] == [
        (3, 3.0, 2),
        (10, 2.8, 2),
        (17, pytest.approx((2.6 + 2.8) / 2), 2),
    ]


def test_a_method_without_a_search_has_the_loss_that_finetuning_found(summary):
    (point,) = method(summary({0: {"proxy": [0.3, 0.4]}}), "proxy").search
    assert (point.x, point.y.mean) == (10, 2.0)


@pytest.fixture
def searched(write, make, notes):
    """Write spsa's result and history, and its finetuning; return what is summed up of it."""

    def sum_up(lines, finetune=None, **result):
        files = [write("row/seed-0/spsa.json", make.mix("spsa", "spsa", steps=3, **result))]
        files += [write("row/seed-0/spsa.jsonl", lines)] if lines else []
        files += [write("row/seed-0/f.json", finetune)] if finetune else []
        (spsa,) = summarise("row", sort_sources(read_sources(files, notes))["row"]).methods
        return spsa

    return sum_up


def points(method):
    return [(point.x, pytest.approx(point.y.mean)) for point in method.search]


def test_a_search_without_a_validation_at_its_start_begins_with_the_uniform_blend(searched, make):
    loss = {"val": 0.4, "val_uniform": 0.7}
    found = searched(make.staged("spsa"), loss=loss)
    assert found.objective == "loss" and points(found) == [(0, 0.7), (45, 0.4)]
    assert points(searched(make.search("spsa", 2), loss=loss)) == [(3, 3.0), (10, 2.8)]  # which it validated itself
    assert points(searched(make.staged("spsa"), loss={"val": 0.4, "val_uniform": None})) == [(45, 0.4)]


@pytest.mark.parametrize(
    ("objective", "uniform", "minimised"),
    [("accuracy", 0.8, 0.2), ("f1", 0.7, 0.3), ("python:scores:gain", 5.0, -5.0)],
)
def test_a_figure_of_which_more_is_better_is_drawn_as_it_was_minimised(searched, make, objective, uniform, minimised):
    score = {"name": objective, "val": 0.6, "val_uniform": uniform}
    found = searched(make.staged("spsa"), objective=score)
    assert found.objective == objective and points(found) == [(0, minimised), (45, 0.4)]


def test_the_loss_of_finetuning_does_not_stand_in_for_another_objective(searched, make):
    finetune, score = make.finetune("spsa", [0.3, 0.4]), {"name": "accuracy", "val": 0.6, "val_uniform": 0.5}
    assert points(searched(None, finetune)) == [(10, 2.0)]
    assert points(searched(None, finetune, objective=score)) == []


def test_experts_alone_and_what_is_noted_of_one_seed(summary):
    found = summary({0: {"spsa": [0.3, 0.4]}})
    assert [expert.merit for expert in found.experts] == [
        [pytest.approx(20)],
        [pytest.approx(30)],
        [pytest.approx(40)],
    ]
    assert found.notes[0].startswith("1 seed")


def test_finetunings_of_different_length_are_noted(summary):
    found = summary({0: {"spsa": [0.3, 0.4, 0.5], "proxy": [0.2, 0.3]}})
    assert any("1 to 2 epochs" in note for note in found.notes)


def test_different_experts_under_one_seed_are_noted(write, make, notes):
    other = make.mix("proxy", "proxy")
    other["experts"][1]["sha256"] = "f" * 64
    files = [write("row/seed-3/a.json", make.mix("spsa", "spsa")), write("row/seed-3/b.json", other)]
    runs = sort_sources(read_sources(files, notes))["row"]
    assert any("seed 3" in note and "experts" in note for note in summarise("row", runs).notes)


def test_validation_stands_in_where_the_test_split_was_not_tracked(write, make, notes):
    result = make.finetune("spsa", [0.1, 0.2])
    for line in result["history"]:
        del line["test_accuracy"]
    runs = sort_sources(read_sources([write("row/seed-0/f.json", result)], notes))["row"]
    found = summarise("row", runs)
    assert found.merit.key == "val_accuracy"
    assert found.methods[0].merit.last.mean == pytest.approx(10)
    assert any("validation split" in note for note in found.notes)


def test_regression_has_r2_and_a_figure_that_is_missing_is_left_out(write, make, notes):
    history = [{"epoch": epoch, "val_loss": 1.0, "test_r2": r2} for epoch, r2 in enumerate([None, 0.25, 0.5])]
    result = {"schema": "glue.finetune/1", "start": "a/spsa.safetensors", "history": history}
    runs = sort_sources(read_sources([write("row/seed-0/f.json", result)], notes))["row"]
    found = summarise("row", runs)
    assert (found.merit.key, found.methods[0].merit.prior) == ("test_r2", None)
    assert found.methods[0].merit.epochs.mean == pytest.approx(0.375)


def test_a_mix_alone_has_its_cost_and_no_figure_of_merit(write, make, notes):
    runs = sort_sources(read_sources([write("row/m.json", make.mix("fullgrad", "fullgrad"))], notes))["row"]
    found = summarise("row", runs)
    assert found.merit is None
    assert found.methods[0].cost["peak_bytes"].mean == 2**20


def test_methods_that_blend_other_experts_are_named_with_the_seed_if_there_is_one(write, make, notes):
    others = [{"path": path, "sha256": "f" * 64} for path in make.experts]
    files = [
        write("row/data-size.json", make.mix("data-size", "data-size")),
        write("row/uniform.json", make.mix("uniform", "uniform", experts=others)),
    ]
    found = summarise("row", sort_sources(read_sources(files, notes))["row"])
    assert found.notes[-1] == "The methods did not all blend the same experts."
