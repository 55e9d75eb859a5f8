"""The ways of choosing alpha that the default search is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ngopt
import torch
from problem import Problem
from torch import Tensor

from glue_cli.methods.fullgrad import fullgrad
from glue_cli.methods.proxy import proxy
from glue_cli.methods.result import Learned
from glue_cli.methods.spsa import spsa
from glue_cli.methods.uniform import uniform
from glue_cli.search.account import Cost
from glue_cli.search.objective import BlendObjective
from glue_cli.spec.schema import MixSpec


@dataclass(frozen=True)
class Found:
    """An alpha [K], float64, and the forwards that it took."""

    alpha: Tensor
    forwards: int


# The alphas of a search by budget; of a problem, its budgets and the seed.
Search = Callable[[Problem, Sequence[int], int], dict[int, Found]]


@dataclass
class Trail:
    """The last alpha on the way of a search that each budget pays for."""

    cost: Cost
    budgets: Sequence[int]
    found: dict[int, Found] = field(default_factory=dict)

    def note(self, alpha: Tensor) -> None:
        now = self.cost.in_forwards
        self.found |= {budget: Found(alpha, now) for budget in self.budgets if now <= budget}


class Unvalidated:
    """An objective of which a search has only the minibatches: validation costs nothing, and tells nothing."""

    n_validation_batches = 1

    def __init__(self, objective: BlendObjective) -> None:
        self.n_groups, self.n_experts, self.cost = objective.n_groups, objective.n_experts, objective.cost
        self.probe_losses, self.pair_losses = objective.probe_losses, objective.pair_losses
        self.gradient = objective.gradient

    def validation_loss(self, alpha: Tensor, n_batches: int | None = None) -> float:
        return 0.0


def descend(
    method: Callable[..., Learned], objective: BlendObjective, budgets: Sequence[int], seed: int, **settings: Any
) -> dict[int, Found]:
    """Run one of glue's descents until the largest budget is spent; each budget has the point where it ends."""
    trail = Trail(objective.cost, budgets)
    n_steps = max(budgets) // (3 if method is fullgrad else 2)
    never_stopping = {"steps": n_steps, "validate_every": n_steps, "patience": n_steps}
    mix = MixSpec.model_validate({**settings, **never_stopping})
    method(Unvalidated(objective), mix, seed=seed, observe=lambda record: trail.note(record.alpha[0]))
    return trail.found


def paper_spsa(problem: Problem, budgets: Sequence[int], seed: int, *, lr: float) -> dict[int, Found]:
    return descend(spsa, problem.objective(seed), budgets, seed, preset="paper", lr=lr)


def full_gradient(problem: Problem, budgets: Sequence[int], seed: int, *, lr: float) -> dict[int, Found]:
    return descend(fullgrad, problem.objective(seed), budgets, seed, preset="paper", lr=lr)


def cma_es(problem: Problem, budgets: Sequence[int], seed: int, *, sigma: float) -> dict[int, Found]:
    """CMA-ES on the logits from the uniform blend, a minibatch a generation; the mean is its result."""
    import numpy as np
    from cmaes import CMA

    objective = problem.objective(seed)
    trail = Trail(objective.cost, budgets)
    optimizer = CMA(mean=np.zeros(problem.n_experts), sigma=sigma, seed=seed)
    for generation in range(max(budgets) // optimizer.population_size):
        betas = [optimizer.ask() for _ in range(optimizer.population_size)]
        losses = objective.probe_losses(torch.softmax(torch.from_numpy(np.stack(betas)), -1)[:, None], generation)
        optimizer.tell(list(zip(betas, losses.tolist(), strict=True)))
        trail.note(torch.softmax(torch.from_numpy(optimizer.mean.copy()), -1))
    return trail.found


def ng_opt(problem: Problem, budgets: Sequence[int], seed: int, *, work: Path) -> dict[int, Found]:
    """NGOpt on the logits, told the budget, by which it chooses what to do."""
    python = ngopt.install(work)
    found = {}
    for budget in budgets:
        objective = problem.objective(seed)
        beta = ngopt.minimise(
            python, partial(_losses_of_logits, objective), n_numbers=problem.n_experts, budget=budget, seed=seed
        )
        found[budget] = Found(torch.softmax(torch.tensor(beta, dtype=torch.float64), -1), objective.cost.in_forwards)
    return found


def _losses_of_logits(objective: BlendObjective, betas: Sequence[Sequence[float]], step: int) -> list[float]:
    alphas = torch.softmax(torch.tensor(betas, dtype=torch.float64), -1)  # [m, K]
    losses: list[float] = objective.probe_losses(alphas[:, None], step).tolist()
    return losses


def uniform_blend(problem: Problem, budgets: Sequence[int], seed: int) -> dict[int, Found]:
    return _any_budget(uniform(problem.n_experts), budgets, 0)


def proxy_blend(problem: Problem, budgets: Sequence[int], seed: int) -> dict[int, Found]:
    """By the experts' accuracies on the whole validation set."""
    alpha = proxy([figures["accuracy"] for figures in problem.expert_figures])
    return _any_budget(alpha, budgets, problem.expert_forwards)


def best_expert(problem: Problem, budgets: Sequence[int], seed: int) -> dict[int, Found]:
    """The one with the lowest loss on the whole validation set."""
    losses = [figures["loss"] for figures in problem.expert_figures]
    alpha = [float(k == losses.index(min(losses))) for k in range(problem.n_experts)]
    return _any_budget(alpha, budgets, problem.expert_forwards)


def _any_budget(alpha: Sequence[float], budgets: Sequence[int], forwards: int) -> dict[int, Found]:
    """Return the alpha of a method that takes no search: the same whatever the budget, which it may exceed."""
    return dict.fromkeys(budgets, Found(torch.tensor(alpha, dtype=torch.float64), forwards))


def peers(work: Path) -> dict[str, Search]:
    """Return the alternatives by name, a setting each.

    Args:
        work: where the environment for nevergrad is, or is made.
    """
    return {
        **{f"paper-{lr}": partial(paper_spsa, lr=lr) for lr in (0.01, 0.03, 0.1, 0.3)},
        "ngopt": partial(ng_opt, work=work),
        **{f"cmaes-{sigma}": partial(cma_es, sigma=sigma) for sigma in (0.5, 1)},
        **{f"fullgrad-{lr}": partial(full_gradient, lr=lr) for lr in (0.03, 0.1, 0.3)},
        "uniform": uniform_blend,
        "proxy": proxy_blend,
        "best-expert": best_expert,
    }
