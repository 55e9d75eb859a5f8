"""Every search can stop between two steps, and another goes on in its place, in another process."""

import copy
from dataclasses import asdict

import pytest
import torch
from fake_objective import Bowl
from saved_state import through_files

from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.state import save_nothing
from glue_cli.methods import METHODS, SEARCHES
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned
from glue_cli.methods.stepwise import run
from glue_cli.search import account
from glue_cli.spec.schema import MixSpec

TARGET = [[0.5, 0.1, 0.1, 0.3], [0.0, 0.2, 0.7, 0.1]]
STAGED = {
    "steps": {"steps": 14, "validate_every": 3},
    "level": {"steps": 200, "validate_every": 2, "patience": 2},
    "budget": {"budget": "90"},
    "small budget": {"budget": "30"},
    "budget of examples": {"budget": "300ex", "batch_size": 4},
    "budget of time": {"budget": "10s"},
}
PROBES = {
    "probes": {"optimizer": "adam", "n_directions": 2, "budget": "90"},
    "momentum": {"optimizer": "momentum", "steps": 13},
}
PLAIN = {
    "plain": {"preset": "paper", "steps": 9, "validate_every": 4},
    "plain, level": {"search": "plain", "lr": 0.5, "steps": 100, "validate_every": 1, "patience": 2},
    "plain, momentum": {"preset": "paper", "optimizer": "momentum", "steps": 5},
    "plain, budget": {"search": "plain", "budget": "60", "validate_every": 4},
    "plain, budget of time": {"search": "plain", "budget": "6s", "validate_every": 4},
}
# By method, and by whether the objective is a score, which spsa alone looks at.
CASES = {
    ("spsa", False): STAGED | PROBES | PLAIN,
    ("spsa", True): STAGED,
    ("fullgrad", False): PLAIN,
    ("cmaes", False): STAGED,
    ("greedy", False): STAGED,
}


class Cut(Exception):
    """A search is cut short."""


@pytest.fixture
def make_objective(monkeypatch):
    """Make objectives; the clock is that of the last."""
    made = []
    monkeypatch.setattr(account.time, "monotonic", lambda: made[-1].clock if made else 0.0)

    class Timed(Bowl):
        n_validation_batches, batch_size, seconds_a_forward = 3, 4, 0.125

    class Score(Timed):
        is_smooth, follows_loss = False, True

    class Refreshed(Timed):
        """One of both kinds of statistics, of which the refreshed ones are the better."""

        kinds, floor = ("averaged", "refreshed"), 1.0

        def with_statistics(self, statistics):
            other = copy.copy(self)
            other.floor = 0.5 if statistics == "refreshed" else 1.0
            return other

        def written_terms(self, alphas, statistics, n_batches=None):
            return self.with_statistics(statistics).validation_terms(alphas, n_batches)

    def make(is_score=False, has_kinds=False):
        made.append((Score if is_score else Refreshed if has_kinds else Timed)(TARGET, noise=0.1))
        return made[-1]

    return make


def choose(method, objective, keys, *, records, save_state=save_nothing, state=None):
    settings = MixSpec.model_validate(keys)
    search = METHODS[method].load()
    return search(objective, settings, seed=5, observe=records.append, save_state=save_state, state=state)


def outcome(learned, records, objective):
    """Return all that a search gives, in values that compare bit for bit."""
    told = [(record.step, record.loss, record.alpha.tolist(), record.val_loss) for record in records]
    return asdict(learned) | {"alpha": learned.alpha.tolist(), "told": told, "cost": asdict(objective.cost)}


@pytest.mark.parametrize(
    ("method", "is_score", "keys"),
    [
        pytest.param(method, is_score, keys, id=f"{method}, {'score' if is_score else 'loss'}, {name}")
        for (method, is_score), cases in CASES.items()
        for name, keys in cases.items()
    ],
)
def test_a_search_goes_on_from_any_state_bit_for_bit(make_objective, method, is_score, keys):
    whole, objective, states = [], make_objective(is_score), []

    def save_state(state):
        states.append((len(whole), through_files(state())))

    learned = choose(method, objective, keys, records=whole, save_state=save_state)
    wanted = outcome(learned, whole, objective)
    for n_told, state in states:
        records, objective = whole[:n_told], make_objective(is_score)
        assert outcome(choose(method, objective, keys, records=records, state=state), records, objective) == wanted
    n_steps = 2 * learned.n_steps + 1 if method == "greedy" else learned.n_steps
    assert len(states) >= min(1, learned.n_steps) * (n_steps - 1)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_that_is_cut_at_every_step_comes_to_the_same_end(make_objective, method):
    keys, whole, objective = {"steps": 10, "validate_every": 3}, [], make_objective()
    wanted = outcome(choose(method, objective, keys, records=whole), whole, objective)
    records, state, n_cuts = [], None, 0

    def cut(state):
        raise Cut(through_files(state()))

    while True:
        objective = make_objective()
        try:
            learned = choose(method, objective, keys, records=records, save_state=cut, state=state)
        except Cut as stopped:
            (state,), n_cuts = stopped.args, n_cuts + 1
        else:
            break
    assert outcome(learned, records, objective) == wanted and n_cuts >= 8


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("keys", [{"steps": 9, "validate_every": 2}, {"budget": "150"}])
def test_a_search_among_kinds_of_statistics_goes_on_as_well(make_objective, method, keys):
    states, objective = [], make_objective(has_kinds=True)
    wanted = choose(
        method, objective, keys, records=[], save_state=lambda state: states.append(through_files(state()))
    )
    for state in states:
        learned = choose(method, make_objective(has_kinds=True), keys, records=[], state=state)
        assert torch.equal(learned.alpha, wanted.alpha) and learned.search == wanted.search
        assert learned.statistics == wanted.statistics == "refreshed"


def test_states_need_not_be_taken(make_objective):
    calls = []
    choose("spsa", make_objective(), {"steps": 5}, records=[], save_state=calls.append)
    assert len(calls) > 5 and all(callable(call) for call in calls)


def test_a_search_does_not_end_at_an_alpha_outside_the_domain():
    class Astray:
        def step(self):
            return Learned(torch.tensor([[float("nan"), 0.5]]), None, None, 7, "budget")

    with pytest.raises(NumericalError, match="after 7 mixing steps"):
        run(Simplex(1, 2), Astray(), save_nothing, None)
