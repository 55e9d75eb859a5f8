import math

import pytest
import torch

from glue_cli.methods.staged.guard import SHARE, Candidate, as_written_down, guard
from glue_cli.results.record import as_object
from glue_cli.search.account import Cost, Purse
from glue_cli.spec.budget import Budget

N_BATCHES, BATCH = 5, 40


class Noisy:
    """Losses of examples in batches: a level that alpha picks, and noise of which most is common to all blends.

    Args:
        levels: of the experts, [K]; a blend's is their mean weighted by alpha.
        own: how large the noise is that each blend has for itself.
    """

    def __init__(self, levels, own=0.1):
        self.cost, self.asked = Cost(), []
        self.levels, self.own = torch.tensor(levels, dtype=torch.float64), own
        self.common = self.draw(0)

    def draw(self, *seed):
        return torch.randn(N_BATCHES * BATCH, generator=torch.Generator().manual_seed(hash(seed)), dtype=torch.float64)

    kinds, n_folds, n_held_out_batches = ("averaged",), 1, N_BATCHES

    def n_written_forwards(self, statistics, n_batches=None):
        return min(n_batches or N_BATCHES, N_BATCHES)

    def written_terms(self, alpha, statistics, n_batches=None):
        n = N_BATCHES if n_batches is None else min(n_batches, N_BATCHES)
        self.asked.append(n_batches)
        self.cost.forwards += n
        noise = self.common + self.own * self.draw(*(round(1e6 * a) for a in alpha.flatten().tolist()))
        return ((alpha * self.levels).sum() + noise)[: n * BATCH]


def expert(k, n_experts=4):
    return torch.eye(n_experts, dtype=torch.float64)[k : k + 1]


def run(objective, end, rivals, budget=None, spent=0):
    objective.cost.forwards = spent
    limit = Budget(budget, "forwards") if budget is not None else None
    rivals = [Candidate(name, alpha) for name, alpha in rivals.items()]
    return guard(objective, Purse(limit, objective.cost, BATCH), Candidate("end", end), rivals)


RIVALS = {f"expert {k}": expert(k) for k in (1, 2, 3)}


def test_the_best_of_the_rivals_that_are_truly_better_is_returned():
    objective = Noisy([1.0, 1.2, 0.8, 0.7])
    verdict = run(objective, expert(0), RIVALS)
    assert verdict.name == "expert 3" and torch.equal(verdict.returned.alpha, expert(3))
    assert [rival.candidate.name for rival in verdict.rivals] == list(RIVALS)
    for rival, wanted in zip(verdict.rivals, [0.2, -0.2, -0.3], strict=True):
        assert rival.difference == pytest.approx(wanted, abs=5 * rival.standard_error)
    assert verdict.loss == verdict.rivals[2].loss < verdict.end_loss
    assert verdict.n_terms == N_BATCHES * BATCH and objective.asked == [None] * 4


def test_the_noise_that_all_blends_share_does_not_hide_a_difference():
    """Of 200 examples with a spread of 1 the mean is known to 0.07, and the difference to 0.001."""
    verdict = run(Noisy([1.0, 0.99], own=0.01), expert(0, 2), {"rival": expert(1, 2)})
    assert verdict.name == "rival" and verdict.rivals[0].standard_error < 0.002


def test_the_end_is_kept_where_nothing_is_better():
    verdict = run(Noisy([1.0, 1.1, 1.2, 1.3]), expert(0), RIVALS)
    assert verdict.name == "end" and torch.equal(verdict.returned.alpha, expert(0))
    assert verdict.loss == verdict.end_loss and len(verdict.rivals) == 3


def test_a_rival_that_is_better_by_less_than_two_standard_errors_is_not_returned():
    found = [run(Noisy([1.0, 1.0 - level], own=0.5), expert(0, 2), {"rival": expert(1, 2)}) for level in (-0.2, 0.2)]
    error, draw = found[0].rivals[0].standard_error, found[0].rivals[0].difference - 0.2
    for extra, name in [(1.9, "end"), (2.1, "rival")]:
        level = draw + extra * error  # so that the difference comes out at `extra` standard errors
        verdict = run(Noisy([1.0, 1.0 - level], own=0.5), expert(0, 2), {"rival": expert(1, 2)})
        assert verdict.rivals[0].difference == pytest.approx(-extra * error)
        assert verdict.name == name


def test_the_standard_error_is_that_of_the_paired_differences():
    objective = Noisy([1.0, 0.9])
    (rival,) = run(objective, expert(0, 2), {"rival": expert(1, 2)}).rivals
    pairs = zip(*(objective.written_terms(expert(k, 2), "averaged").tolist() for k in (1, 0)), strict=True)
    differences = [one - other for one, other in pairs]
    mean = math.fsum(differences) / 200
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / 199)
    assert rival.difference == pytest.approx(mean)
    assert rival.standard_error == pytest.approx(spread / math.sqrt(200))


@pytest.mark.parametrize("spent", [10, 12])
def test_without_budget_nothing_is_compared(spent):
    objective = Noisy([1.0, 0.1, 0.1, 0.1])
    verdict = run(objective, expert(0), RIVALS, budget=10, spent=spent)
    assert objective.asked == [] and objective.cost.forwards == spent
    assert verdict.name == "end" and torch.equal(verdict.returned.alpha, expert(0))
    assert (verdict.loss, verdict.end_loss, verdict.n_terms, verdict.rivals) == (None, None, 0, [])


@pytest.mark.parametrize(
    ("left", "n_rivals", "n_batches"),
    [(2, 1, 1), (3, 2, 1), (4, 3, 1), (7, 3, 1), (8, 3, 2), (19, 3, 4), (20, 3, 5), (1000, 3, 5)],
)
def test_what_is_left_is_shared_out(left, n_rivals, n_batches):
    objective = Noisy([1.0, 0.9, 0.8, 0.7])
    verdict = run(objective, expert(0), RIVALS, budget=10_000, spent=10_000 - left)
    assert [rival.candidate.name for rival in verdict.rivals] == list(RIVALS)[:n_rivals]
    assert verdict.n_terms == n_batches * BATCH
    assert objective.cost.forwards == 10_000 - left + (1 + n_rivals) * n_batches <= 10_000
    assert verdict.end_loss is not None
    assert verdict.name == (f"expert {n_rivals}" if n_rivals else "end")


def test_no_more_than_its_share_is_spent():
    objective = Noisy([1.0, 0.9, 0.8, 0.7])
    verdict = run(objective, expert(0), RIVALS, budget=60, spent=10)
    assert objective.cost.forwards - 10 == 8 <= SHARE * 60 and len(verdict.rivals) == 3


def test_a_rival_that_is_the_end_is_not_compared_with_it():
    objective = Noisy([1.0, 0.9, 0.8, 0.7])
    verdict = run(objective, expert(0), {"itself": expert(0), "expert 1": expert(1)}, budget=1000)
    assert [rival.candidate.name for rival in verdict.rivals] == ["expert 1"]


def test_without_rivals_only_the_loss_is_found():
    objective = Noisy([1.0])
    verdict = run(objective, expert(0, 1), {})
    assert verdict.name == "end" and verdict.rivals == [] and objective.asked == [None]
    assert verdict.loss == objective.written_terms(expert(0, 1), "averaged").mean().item()


def test_a_single_term_says_nothing_of_its_noise():
    objective = Noisy([1.0, 0.5])
    objective.written_terms = lambda alpha, statistics, n_batches=None: (alpha * objective.levels).sum()[None]
    verdict = run(objective, expert(0, 2), {"rival": expert(1, 2)})
    assert verdict.name == "end" and verdict.loss == 1.0
    (rival,) = verdict.rivals
    assert (rival.loss, rival.difference, rival.standard_error) == (0.5, -0.5, None)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_rival_without_a_finite_loss_is_not_returned(wrong):
    objective = Noisy([1.0, 0.5, 0.9])
    terms = objective.written_terms
    objective.written_terms = lambda alpha, statistics, n=None: (
        terms(alpha, statistics, n) + (wrong if alpha[0, 1] > 0 else 0)
    )
    rivals = {"broken": expert(1, 3), "sound": expert(2, 3)}
    assert run(objective, expert(0, 3), rivals).name == "sound"
    del rivals["sound"]
    assert run(objective, expert(0, 3), rivals).name == "end"


def test_a_result_has_the_figures_and_no_alphas():
    objective = Noisy([1.0, 0.5, 2.0, 2.0])
    verdict = run(objective, expert(0), RIVALS)
    shown = as_object(as_written_down(verdict))
    assert shown["terms"] == 200 and shown["end_loss"] == verdict.end_loss
    assert [list(rival) for rival in shown["rivals"]] == [["name", "loss", "difference", "standard_error"]] * 3
    assert shown["rivals"][0]["difference"] == verdict.rivals[0].difference
