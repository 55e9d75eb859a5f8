"""What every strategy keeps, whatever it does: it can stop after any step, and another goes on in its place."""

import pytest
import torch
from fake_objective import Bowl
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_state import through_files

from glue_cli.methods.cmaes import CmaEs
from glue_cli.methods.domains import Simplex
from glue_cli.methods.fullgrad import TrueGradient
from glue_cli.methods.steps.gauss_newton import GaussNewton
from glue_cli.methods.steps.logit_descent import AveragedDescent, LogitDescent
from glue_cli.methods.steps.questions import answer
from glue_cli.methods.steps.spsa_steps import ProbePairs, SurrogateFirst
from glue_cli.methods.steps.strategy import make_step
from glue_cli.spec.schema import MixSpec

N_STEPS = 8


def settings_of(**keys):
    return MixSpec.model_validate({"n_directions": 2, "steps": 8} | keys)


def by_probes(domain, start, **keys):
    return AveragedDescent(domain, start, ProbePairs(domain, settings_of(**keys), 3), settings_of(**keys))


STRATEGIES = {
    "gauss-newton": lambda domain, start: GaussNewton(domain, start, seed=3),
    "probes": by_probes,
    "probes, momentum": lambda domain, start: by_probes(domain, start, optimizer="momentum"),
    "probes, rademacher": lambda domain, start: by_probes(domain, start, directions="rademacher", zero_sum=False),
    "surrogate first": lambda domain, start: SurrogateFirst(domain, start, settings_of(), 3),
    "gradient": lambda domain, start: LogitDescent(domain, start.log(), TrueGradient(domain), settings_of()),
    "cmaes": lambda domain, start: CmaEs(domain, start, 3),
}
EVERY = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)


def objective_of(shape):
    random = torch.Generator().manual_seed(0)
    return Bowl(torch.rand(shape, generator=random, dtype=torch.float64).softmax(-1).tolist(), noise=0.1)


def go(strategy, objective, steps, n_forwards):
    """Make steps; return the losses and the alphas."""
    losses = []
    for step in steps:
        losses += [make_step(strategy, objective, step, n_forwards(step)), strategy.alpha.tolist()]
    return losses


@EVERY
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5)),
    cut=st.integers(0, N_STEPS),
    extra=st.lists(st.integers(0, 9), min_size=N_STEPS, max_size=N_STEPS),
    is_limited=st.booleans(),
)
def test_a_strategy_that_is_restored_goes_on_bit_for_bit(make, shape, cut, extra, is_limited):
    domain, objective = Simplex(*shape), objective_of(shape)

    def n_forwards(step):
        return 20.0 + extra[step] - 2 * step if is_limited else float("inf")

    strategy = make(domain, domain.uniform())
    whole = go(strategy, objective, range(N_STEPS), n_forwards)
    first = make(domain, domain.uniform())
    before = go(first, objective, range(cut), n_forwards)
    state = through_files(first.state())
    second = make(domain, domain.corner(0))
    second.restore(state)
    assert second.alpha.tolist() == first.alpha.tolist()
    assert (second.n_forwards, second.least_forwards) == (first.n_forwards, first.least_forwards)
    assert before + go(second, objective, range(cut, N_STEPS), n_forwards) == whole
    again = through_files(state)
    assert all(torch.equal(value, again[name]) for name, value in state.items() if isinstance(value, torch.Tensor))


@EVERY
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_step_can_be_given_up_while_its_question_is_open(make, cut):
    domain, objective = Simplex(1, 4), objective_of((1, 4))
    whole = go(make(domain, domain.uniform()), objective, range(N_STEPS), lambda step: float("inf"))
    first = make(domain, domain.uniform())
    before = go(first, objective, range(cut), lambda step: float("inf"))
    first.has_converged  # which may work something out  # noqa: B018
    first.ask(cut, float("inf"))
    second = make(domain, domain.uniform())
    second.restore(through_files(first.state()))
    assert before + go(second, objective, range(cut, N_STEPS), lambda step: float("inf")) == whole


@EVERY
def test_a_strategy_asks_only_for_points_of_the_domain_and_knows_no_objective(make):
    domain, objective = Simplex(2, 3), objective_of((2, 3))
    strategy = make(domain, domain.uniform())
    assert not any(value is objective for value in vars(strategy).values())
    for step in range(N_STEPS):
        question = strategy.ask(step, float("inf"))
        alphas = question.alphas if hasattr(question, "alphas") else [question.alpha]
        assert all(domain.contains(alpha) for alpha in alphas)
        spent = objective.cost.in_forwards
        strategy.tell(answer(objective, question, step))
        assert objective.cost.in_forwards - spent <= strategy.n_forwards or isinstance(strategy, SurrogateFirst)
        assert domain.contains(strategy.alpha)


def test_a_question_for_many_blends_is_answered_a_few_at_a_time():
    domain, objective = Simplex(1, 16), objective_of((1, 16))
    question = CmaEs(domain, domain.uniform(), 0).ask(0, float("inf"))
    losses = answer(objective, question, 7)
    assert {n for n, _ in objective.probed} == {2} and {step for _, step in objective.probed} == {7}
    assert losses.tolist() == (objective.loss(question.alphas) + objective.noise_at(7)).tolist()
