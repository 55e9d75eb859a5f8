import math

import pytest
import torch
from fake_objective import Bowl as PlainBowl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from glue_cli.methods.spsa import spsa
from glue_cli.methods.staged import guard
from glue_cli.methods.staged import search as staged
from glue_cli.methods.steps import questions
from glue_cli.search import account as budget_module
from glue_cli.search.secants import Quadratic as ToSecondOrder
from glue_cli.spec.schema import MixSpec

BATCH, N_VALIDATION_BATCHES = 64, 8
MOST_BLENDS = 5  # that the guard keeps forwards for


class Bowl(PlainBowl):
    """One with several validation batches."""

    n_validation_batches, batch_size = N_VALIDATION_BATCHES, BATCH


class Walk:
    """A strategy that goes a part of the way to the target, with as many forwards as Gauss-Newton."""

    has_converged = False

    def __init__(self, objective, start, n_rounds=3, part=0.3):
        self.objective, self.alpha, self.n_rounds, self.part = objective, start, n_rounds, part
        self.n_forwards, self.least_forwards = start.numel() + 1, start.numel() // 2 + 1
        self.steps = []

    def ask(self, step, n_forwards):
        assert n_forwards >= self.least_forwards
        self.steps.append(step)
        coordinates = torch.arange(int(min(n_forwards, self.n_forwards)) - 1)
        return questions.ToSecondOrder(self.alpha, coordinates, 0.03)

    def tell(self, answer):
        self.alpha = self.alpha.lerp(self.objective.target, self.part)
        return answer.loss


class OneProbe(Walk):
    """A strategy that asks for one forward a step, and stays where it is."""

    def ask(self, step, n_forwards):
        self.steps.append(step)
        return questions.Probes(self.alpha[None], n_at_once=1)

    def tell(self, answer):
        return 1.0


def rising(n_experts):
    return [2 * (k + 1) / n_experts / (n_experts + 1) for k in range(n_experts)]


def settings_of(**keys):
    return MixSpec.model_validate(keys)


def run(objective, make=Walk, **keys):
    """Search; return what was learned, the records, and the contenders' strategies."""
    strategies, records = [], []

    def make_strategy(start):
        strategies.append(make(objective, start))
        return strategies[-1]

    learned = staged.search(objective, settings_of(**keys), make_strategy, seed=0, observe=records.append)
    return learned, records, strategies


def spent_by_stage(learned):
    return {stage.stage: stage.forwards for stage in learned.search.stages}


# ---- budgets


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.integers(1, 500), st.sampled_from([3, 10]))
def test_a_budget_of_forwards_is_never_exceeded(n_experts, budget, n_rounds):
    objective = Bowl(rising(n_experts), noise=0.1)
    learned, records, _ = run(objective, lambda *start: Walk(*start, n_rounds), budget=str(budget))
    assert objective.cost.forwards <= budget
    assert learned.stopped == "budget" and learned.n_steps == len(records) - 2
    spent = spent_by_stage(learned)
    assert list(spent) == ["screen", "race", "descend", "guard"]
    assert sum(spent.values()) == objective.cost.forwards
    assert spent["screen"] <= max(1, budget / 4) and spent["race"] <= budget / 2
    assert learned.alpha.min() >= 0 and learned.alpha.sum().item() == pytest.approx(1)
    assert spent["guard"] <= guard.SHARE * budget


@pytest.mark.parametrize("n_experts", [2, 5, 16])
@pytest.mark.parametrize("budget", [40, 100, 301])
def test_most_of_a_budget_descends(n_experts, budget):
    objective = Bowl(rising(n_experts))
    learned, _, _ = run(objective, budget=str(budget))
    spent = spent_by_stage(learned)
    least = n_experts // 2 + 1
    kept = min(guard.SHARE * budget, MOST_BLENDS * N_VALIDATION_BATCHES)
    assert budget - kept - least < spent["screen"] + spent["race"] + spent["descend"] <= budget - kept
    assert spent["descend"] > 0.2 * budget


@pytest.mark.parametrize(("n_experts", "n_batches"), [(2, 1), (2, 10), (7, 1), (7, 100), (64, 1), (64, 100)])
def test_a_budget_of_examples_is_never_exceeded(n_experts, n_batches):
    objective = Bowl(rising(n_experts))
    learned, _, _ = run(objective, budget=f"{BATCH * n_batches + 5}ex", batch_size=BATCH)
    assert n_batches / 2 <= objective.cost.forwards <= n_batches and learned.stopped == "budget"
    assert objective.cost.examples <= BATCH * n_batches + 5


@pytest.mark.parametrize("seconds", [10, 60])
def test_a_budget_of_time_is_kept_by_the_speed_so_far(monkeypatch, seconds):
    objective = Bowl(rising(5))
    objective.seconds_a_forward = 0.1
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: objective.clock)
    learned, _, _ = run(objective, budget=f"{seconds}s")
    assert learned.stopped == "budget" and 0.8 * seconds <= objective.clock - 1000 <= seconds
    spent = spent_by_stage(learned)
    assert spent["screen"] <= seconds / 4 / 0.1 and spent["guard"] > 0 and len(objective.validated) > 3


@pytest.mark.parametrize("seconds_a_forward", [1.0, 1.4, 1.9, 3.0])
def test_forwards_that_become_slow_in_the_race_end_it_in_time(monkeypatch, seconds_a_forward):
    objective = Bowl(rising(5))
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: objective.clock)

    class Slow(Walk):
        def ask(self, step, n_forwards):
            self.objective.seconds_a_forward = seconds_a_forward
            return super().ask(step, n_forwards)

    objective.seconds_a_forward = 0.1
    learned, _, contenders = run(objective, Slow, budget="1m")
    assert learned.stopped == "budget" and len(contenders) == 4
    first_round = 4 * 6 * seconds_a_forward  # begun when forwards were quick yet
    assert objective.clock - 1000 < max(60, 1.2 + first_round) + 2 * seconds_a_forward


# ---- without a budget


def test_a_level_validation_loss_ends_the_search():
    objective = Bowl(rising(4))
    objective.floor = 1.0
    keys = {"validate_every": 2, "patience": 3, "steps": 300}
    learned, records, _ = run(objective, lambda *start: Walk(*start, part=0.1), **keys)
    assert learned.stopped == "plateau" and 14 <= learned.n_steps < 60
    validated = [record for record in records if record.val_loss is not None]
    raced, last = 6, learned.n_steps  # steps
    assert [record.step for record in validated] == [*range(raced + 2, last + 1, 2), last]  # at last what is returned
    losses = [record.val_loss for record in validated[:-1]]
    assert losses[-4] - losses[-1] < 1e-3 < losses[0] - losses[-1]


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_steps_are_the_most_that_are_made(steps):
    learned, records, _ = run(Bowl(rising(4)), steps=steps, validate_every=100)
    assert learned.stopped == "steps" and learned.n_steps == steps
    assert [record.step for record in records] == [*range(steps + 1), steps]


def test_with_a_budget_nothing_is_validated_before_the_guard():
    objective = Bowl(rising(4))
    learned, records, _ = run(objective, budget="400", validate_every=1, steps=2)
    assert learned.n_steps > 20 and all(record.val_loss is None for record in records[:-1])
    assert objective.cost.validation_forwards == spent_by_stage(learned)["guard"]


# ---- the race


def test_contenders_see_the_same_minibatches_and_screening_others():
    objective = Bowl(rising(6))
    _, _, contenders = run(objective, steps=12)
    raced = sorted((contender.steps for contender in contenders), key=len)
    assert [len(steps) for steps in raced] == [3, 3, 6, 12]
    assert raced[-1] == list(range(2, 14))
    assert all(steps == raced[-1][: len(steps)] for steps in raced)


@pytest.mark.parametrize(
    ("budget", "n_contenders"), [(67, 1), (68, 2), (151, 2), (152, 3), (179, 3), (180, 4), (1000, 4)]
)
def test_as_many_race_as_half_of_what_is_left_affords(budget, n_contenders):
    """Screening takes 9 forwards, a step 4; two contenders make 2 x 3 steps in all, three 5 x 3, four 6 x 3."""
    learned, _, contenders = run(Bowl(rising(3)), budget=str(budget))
    assert len(contenders) == n_contenders
    assert spent_by_stage(learned)["race"] == 12 * [0, 2, 5, 6][n_contenders - 1]


class Scripted(OneProbe):
    """A strategy that stays where it is; towards expert 1, the first minibatch alone is a hard one."""

    def tell(self, answer):
        if self.alpha.argmax() != 1:
            return 1.0
        return 9.0 if self.steps[-1] == 2 else 0.1


def test_the_uniform_blend_races_although_others_look_better():
    objective = Bowl(rising(6))
    objective.target = torch.tensor([[0.5, 0.5, 0.5, 0.5, -0.5, -0.5]], dtype=torch.float64)
    learned, _, contenders = run(objective, Scripted, budget="1000")
    starts = learned.search.starts
    assert list(starts).index("uniform") >= 4
    uniform = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    assert len(contenders) == 4 and torch.equal(contenders[-1].alpha, uniform)


def test_the_contender_whose_latest_losses_are_least_wins():
    """It looked worse than others when starts were screened, and in its first step."""
    objective = Bowl([0.1, 0.3, 0.6])
    learned, _, _ = run(objective, Scripted, budget="1000")
    assert list(learned.search.starts).index("towards expert 1") in (1, 2, 3)
    assert learned.search.start == "towards expert 1"


class TwoBasins(Bowl):
    """A shallow basin around the uniform blend, and a deep one near the target."""

    def parts(self, alpha):
        shallow = 2.0 + (alpha - 1 / self.n_experts).square().sum((-2, -1))
        return torch.stack([1.0 + 4 * (alpha - self.target).square().sum((-2, -1)), shallow])

    def loss(self, alpha):
        return self.parts(alpha).amin(0)

    def quadratic(self, alpha, coordinates, radius, step, *, is_tied=False):
        self.charge(len(coordinates) + 1)
        ways = self.ways(alpha, coordinates)
        deep, shallow = self.parts(alpha)
        scale, bottom = (8, self.target) if deep < shallow else (2, torch.full_like(alpha, 1 / self.n_experts))
        return ToSecondOrder(
            self.loss(alpha).item(), scale * (ways @ (alpha - bottom)[0])[None], scale * (ways @ ways.T)[None]
        )


@pytest.mark.parametrize("budget", ["60", "100", None])
def test_the_deeper_of_two_basins_is_found(budget):
    """Descent from the uniform blend would stay at 2."""
    learned = spsa(TwoBasins([0.1, 0.0, 0.8, 0.1]), settings_of(budget=budget), seed=0)
    assert learned.search.start == "towards expert 2"
    assert learned.val_loss == pytest.approx(1, abs=1e-3) and learned.val_loss_start == pytest.approx(2)
    stuck = spsa(TwoBasins([0.1, 0.0, 0.8, 0.1]), settings_of(preset="paper", steps=50), seed=0)
    assert stuck.val_loss == pytest.approx(2, abs=1e-3)


# ---- the guard, and what is told


def test_the_guard_holds_the_end_against_plain_blends_and_the_runner_up():
    objective = Bowl([0.05, 0.05, 0.85, 0.05])
    learned, _, contenders = run(objective)
    guard = learned.search.guard
    assert learned.search.returned == "end" and learned.val_loss == guard.end_loss
    losses = {rival.name: rival.loss for rival in guard.rivals}
    assert set(losses) == {"uniform", "runner-up", learned.search.start, "expert 2"}
    uniform, expert = torch.full((1, 4), 0.25), torch.eye(4)[2:3]
    assert learned.val_loss_start == losses["uniform"] == pytest.approx(objective.loss(uniform).item())
    assert losses["expert 2"] == pytest.approx(objective.loss(expert).item())
    (second,) = (contender for contender in contenders if len(contender.steps) == 6)
    assert losses["runner-up"] == pytest.approx(objective.loss(second.alpha).item())
    assert guard.terms == N_VALIDATION_BATCHES * BATCH


def test_a_search_that_ends_worse_than_an_expert_returns_the_expert():
    class Astray(OneProbe):
        def tell(self, answer):
            self.alpha = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
            return 1.0

    learned, _, _ = run(Bowl([1.0, 0.0, 0.0]), Astray, budget="200")
    assert learned.search.returned == "expert 0" and learned.alpha.tolist() == [[1, 0, 0]]
    assert learned.val_loss == 0 < learned.search.guard.end_loss


def test_what_was_found_is_told():
    learned, records, _ = run(Bowl(rising(3)), budget="200")
    assert learned.search.start in learned.search.starts
    assert set(learned.search.starts) == {"uniform", "by loss", *(f"towards expert {k}" for k in range(3))}
    first, *_, before, last = records
    assert first.step == 0 and first.alpha.tolist() == [pytest.approx([1 / 3] * 3)]
    assert before.loss < 1e-6 < first.loss == pytest.approx(learned.val_loss_start)
    assert torch.equal(last.alpha, learned.alpha) and last.val_loss == learned.val_loss


def test_records_are_of_the_contender_in_the_lead():
    _, records, strategies = run(Bowl(rising(4)), steps=12)
    longest = max(strategies, key=lambda strategy: len(strategy.steps))
    assert torch.equal(records[-2].alpha, longest.alpha) and len(records) == 2 + len(longest.steps)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_loss_that_is_no_number(wrong, at):
    class Breaking(Walk):
        def tell(self, answer):
            loss = super().tell(answer)
            return wrong if self.steps[-1] == 2 + at else loss

    learned, records, _ = run(Bowl(rising(3)), Breaking)
    assert learned.n_skipped >= 1 and records[at + 1].loss is None


def test_a_validation_loss_that_is_no_number():
    objective = Bowl(rising(3))
    objective.validation_loss = lambda alpha: math.nan
    learned, records, _ = run(objective, validate_every=10, patience=2, steps=200)
    assert learned.stopped == "plateau" and learned.n_steps == 20
    assert all(record.val_loss is None for record in records[:-1])


# ---- with the real strategies


@pytest.mark.parametrize(
    "keys", [{}, {"budget": "300"}, {"optimizer": "adam"}, {"optimizer": "adam", "budget": "300"}]
)
def test_spsa_finds_the_optimum_and_repeats(keys):
    target = [0.5, 0.1, 0.1, 0.3]
    found = [spsa(Bowl(target, noise=0.5), settings_of(**keys), seed=0) for _ in range(2)]
    assert torch.equal(found[0].alpha, found[1].alpha) and found[0].search == found[1].search
    wanted = torch.tensor([target], dtype=torch.float64)
    torch.testing.assert_close(found[0].alpha, wanted, rtol=0, atol=0.05 if "optimizer" in keys else 2e-3)


class Scored(Bowl):
    """A score without a derivative, with the least at `target`; the loss has it at `loss_target`, and leads there."""

    is_smooth, follows_loss = False, True

    def __init__(self, target, loss_target, noise=0.0):
        super().__init__(target, noise)
        self.loss_target, self.asked = torch.tensor([loss_target], dtype=torch.float64), []

    def probe_losses(self, alphas, step):
        self.asked.append("probes")
        return super().probe_losses(alphas, step)

    def quadratic(self, alpha, coordinates, radius, step, *, is_tied=False):
        self.asked.append("quadratic")
        ways = self.ways(alpha, coordinates)
        value = super().quadratic(alpha, coordinates, radius, step).loss
        return ToSecondOrder(value, 2 * (ways @ (alpha - self.loss_target)[0])[None], 2 * (ways @ ways.T)[None])


@pytest.mark.parametrize("keys", [{"budget": "300"}, {}])
def test_a_score_that_follows_the_loss_is_searched_down_that_and_then_by_probes(keys):
    score, loss = [0.6, 0.1, 0.3], [0.5, 0.25, 0.25]
    objective = Scored(score, loss, noise=0.1)
    learned = spsa(objective, settings_of(**keys), seed=0)
    last = max(i for i, kind in enumerate(objective.asked) if kind == "quadratic")
    first = objective.asked.index("quadratic")
    assert set(objective.asked[first : last + 1]) == {"quadratic"} and len(objective.asked) > last + 20
    reached = objective.loss(learned.alpha).item()
    assert reached < 0.25 * objective.loss(torch.tensor([loss])).item()


def test_half_of_what_is_left_to_descend_with_goes_down_the_loss():
    learned = spsa(objective := Scored([0.6, 0.1, 0.3], [0.6, 0.1, 0.3]), settings_of(budget="400"), seed=0)
    by_stage = spent_by_stage(learned)
    by_probes = 2 * len(objective.asked[1 + max(i for i, kind in enumerate(objective.asked) if kind == "quadratic") :])
    assert by_probes == pytest.approx((by_stage["race"] + by_stage["descend"]) / 2, rel=0.25)


def test_a_score_that_does_not_follow_the_loss_is_searched_by_probes_alone():
    objective = Scored([0.6, 0.1, 0.3], [0.0, 1.0, 0.0])
    objective.follows_loss = False
    learned = spsa(objective, settings_of(budget="200"), seed=0)
    assert "quadratic" not in objective.asked and learned.val_loss < 0.3 * learned.val_loss_start


def test_probes_have_their_turn_before_validation_can_end_the_search():
    objective = Scored([0.6, 0.1, 0.3], [0.6, 0.1, 0.3], noise=0.1)
    learned = spsa(objective, settings_of(validate_every=1, patience=2), seed=0)
    assert learned.stopped == "plateau" and objective.asked[-1] == "probes" and objective.asked.count("quadratic") > 2


def test_a_step_of_many_probes_leaves_nothing_of_the_budget_unused():
    objective = Scored([0.6, 0.1, 0.1, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1, 0.1])
    spsa(objective, settings_of(budget="200", n_directions=60), seed=0)
    assert 190 < objective.cost.forwards <= 200


@pytest.mark.parametrize("n_experts", [2, 5, 17])
@pytest.mark.parametrize("budget", [7, 30, 150])
def test_the_real_strategies_keep_a_budget(n_experts, budget):
    for keys in ({}, {"optimizer": "adam", "n_directions": 3}):
        for objective in (Bowl(rising(n_experts), noise=0.1), Scored(rising(n_experts), rising(n_experts)[::-1])):
            spsa(objective, settings_of(budget=str(budget), **keys), seed=0)
            assert objective.cost.forwards <= budget


def test_a_race_that_is_cut_short_is_won_by_the_best_so_far():
    class Two(Bowl):
        def noise_at(self, step):
            return torch.zeros(1, dtype=torch.float64)

    objective = Two([0.0, 0.0, 1.0])
    learned, _, contenders = run(objective, lambda *start: Walk(*start, n_rounds=10), steps=4)
    assert len(contenders) > 1 and all(len(contender.steps) == 4 for contender in contenders)
    losses = {name: loss for name, loss in learned.search.starts.items()}
    assert learned.search.start == min(losses, key=losses.get) == "towards expert 2"
    assert "runner-up" in [rival.name for rival in learned.search.guard.rivals]


def test_what_a_stage_bought_is_said():
    learned, _, _ = run(Bowl([0.0, 0.1, 0.9], noise=0.01), budget="200")
    screen, race, descend, guarded = learned.search.stages
    assert (
        screen.losses.loss_after < screen.losses.loss_before and descend.losses.loss_after < descend.losses.loss_before
    )
    assert race.losses.loss_before is guarded.losses.loss_before is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_end_without_a_finite_validation_loss_loses_to_a_sound_rival(wrong):
    class Broken(Bowl):
        def validation_terms(self, alpha, n_batches=None):
            terms = super().validation_terms(alpha, n_batches)
            return terms + (wrong if self.loss(alpha) < 0.01 else 0)

    learned, _, _ = run(Broken([0.0, 0.1, 0.9]), budget="200")
    assert learned.search.returned != "end" and math.isfinite(learned.val_loss)


def test_no_more_is_kept_for_the_guard_than_it_can_spend():
    learned, _, _ = run(objective := Bowl(rising(4)), budget="2000")
    assert objective.cost.forwards > 2000 - 2 * 5 and spent_by_stage(learned)["guard"] <= 5 * N_VALIDATION_BATCHES
