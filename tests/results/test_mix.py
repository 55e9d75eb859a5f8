"""`glue.mix/1`: what a mix has cost, and what its search was for."""

import pytest
from pydantic import ValidationError

from glue_cli.results.mix import (
    BlendedExpert,
    Losses,
    MixCost,
    MixResult,
    Objective,
    Passes,
    Stage,
    StageLosses,
    name_of_expert,
    name_towards_expert,
)
from glue_cli.results.record import as_object, read_record


def result(**more):
    cost = MixCost(forwards=100, validation_forwards=40, backwards=10, examples=5000, wall_s=8.0, peak_bytes=9)
    return MixResult(method="spsa", alpha=[1.0], experts=[BlendedExpert(path="e")], output="p", cost=cost, **more)


def test_the_cost_of_the_choice_leaves_out_what_came_after_it():
    assert result().cost_of_choice == result().cost
    after = Passes(forwards=30, validation_forwards=20, backwards=0, examples=1500, wall_s=2.0)
    chosen = result(afterwards=after).cost_of_choice
    wanted = MixCost(forwards=70, validation_forwards=20, backwards=10, examples=3500, wall_s=6.0, peak_bytes=9)
    assert chosen == wanted and chosen.in_forwards == 90


def test_figures_are_those_of_the_goal():
    losses = Losses(val=0.5, val_uniform=0.7)
    assert result(loss=losses).figures is losses and result(loss=losses).uniform_mean == 0.7
    accurate = result(objective=Objective(name="accuracy", val=0.75, val_uniform=0.25))
    assert accurate.goal.name == "accuracy" and accurate.uniform_mean == 0.75
    assert result().uniform_mean is None and result().goal.is_smooth


def test_what_is_not_known_is_no_key():
    found = as_object(result())
    assert found["loss"] == {} and found["schema"] == "glue.mix/1"
    assert not {"groups", "search", "steps", "objective", "left_out", "afterwards"} & found.keys()
    assert read_record(MixResult, found).cost == result().cost


def test_stages_keep_losses_that_are_not_known_apart_from_none():
    known = {"stage": "race", "forwards": 3, "loss_before": None, "loss_after": None}
    assert as_object(Stage(stage="race", forwards=3, losses=StageLosses(loss_before=None, loss_after=None))) == known
    assert as_object(Stage(stage="explain", forwards=3)) == {"stage": "explain", "forwards": 3}
    assert as_object(read_record(Stage, known)) == known


@pytest.mark.parametrize(("alpha", "said"), [([], "no coefficients"), ([0.5, 0.5], "2 coefficients for 1 experts")])
def test_there_is_a_coefficient_an_expert(alpha, said):
    with pytest.raises(ValidationError, match=said):
        read_record(MixResult, {**as_object(result()), "alpha": alpha})


def test_blends_of_a_search_have_names_of_their_own():
    names = [name(k) for k in range(12) for name in (name_of_expert, name_towards_expert)]
    assert len(set(names)) == 24 and names[:2] == ["expert 0", "towards expert 0"]
