import pytest

from glue_cli.foundation.errors import SpecError
from glue_cli.spec.goal import GOALS, goal_named
from glue_cli.spec.schema import Spec

OWN = "python:own.scores:recall"


@pytest.mark.parametrize(
    ("name", "mean", "figure"), [("loss", 0.3, 0.3), ("accuracy", 0.3, 0.7), ("f1", 0.3, 0.7), (OWN, -2.5, 2.5)]
)
def test_a_mean_and_its_figure_go_over_into_each_other(name, mean, figure):
    goal = goal_named(name)
    assert goal.figure(mean) == pytest.approx(figure) and goal.figure(goal.figure(mean)) == pytest.approx(mean)


@pytest.mark.parametrize("name", [goal for goal in (*GOALS, OWN) if goal != "loss"])
def test_only_the_loss_has_a_slope(name):
    assert goal_named("loss").is_smooth and not goal_named(name).is_smooth


def test_a_function_of_the_user_s_need_not_follow_the_loss_and_is_of_a_minibatch():
    goal = goal_named(OWN)
    assert (goal.follows_loss, goal.has_example_terms, goal.label) == (False, False, "recall")
    assert all(goal_named(name).follows_loss and goal_named(name).label == name for name in GOALS)


def test_the_spec_knows_the_same_names():
    sections = {"model": {"arch": "cnn"}, "data": {"format": "cifar10", "root": "data"}}
    for name in (*GOALS, OWN):
        assert Spec.model_validate({**sections, "objective": name}).objective == goal_named(name).name
    with pytest.raises(ValueError, match="found 'recall'"):
        Spec.model_validate({**sections, "objective": "recall"})
    with pytest.raises(SpecError, match="there is no objective 'recall'"):
        goal_named("recall")
