"""Greedy soup, Wortsman et al. 2022: the uniform mean of those experts by which the held-out loss does not rise."""

import math
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from glue_cli.foundation.seeds import generator
from glue_cli.methods.result import Learned, StepRecord, check_finite
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def greedy(
    objective: Objective, settings: MixSpec, *, seed: int, observe: Callable[[StepRecord], None] = lambda record: None
) -> Learned:
    """Add experts to a soup one by one, from the best alone down; keep each that does not let the soup's loss rise.

    Validation data alone are used, for two validations an expert, the uniform blend's included. A budget says of how
    many batches, the same for all; with one too small for a batch each, only some experts are tried, drawn by `seed`,
    and with one too small for two experts, the uniform blend is returned.

    Args:
        observe: told of every expert tried: the loss with it, and the soup behind it with its own.
    Returns:
        `n_steps` experts were tried; the account has the soup's experts in their order, and the loss after each.
    Raises:
        NumericalError: no expert has a finite loss.
    """
    shape, everyone = (objective.n_groups, objective.n_experts), range(objective.n_experts)
    uniform = _mean_of(everyone, shape)
    if objective.n_experts == 1:
        return Learned(uniform, None, None, 0, "steps")
    purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
    if purse.is_limited:
        objective.validation_terms(uniform, 1)
        purse.warmed_up()
    if purse.is_timed and purse.forwards():
        objective.validation_terms(uniform, 1)  # which shows how many forwards the time is
    affordable = purse.forwards()
    n_tried = int(min(objective.n_experts, affordable / 2))
    if n_tried < 2:
        return Learned(uniform, None, None, 0, "budget")
    n_batches = None if math.isinf(affordable) else max(1, int(affordable / (2 * objective.n_experts)))

    @cache
    def loss_of(experts: frozenset[int]) -> float:
        loss = objective.validation_terms(_mean_of(experts, shape), n_batches).mean().item()
        return loss if math.isfinite(loss) else math.inf

    drawn = torch.randperm(objective.n_experts, generator=generator(seed, "greedy"))[:n_tried].tolist()
    ingredients: list[int] = []
    losses: list[float] = []
    for n, expert in enumerate(sorted(sorted(drawn), key=lambda k: loss_of(frozenset([k]))), 1):
        loss = loss_of(frozenset([*ingredients, expert]))
        if not losses:
            check_finite(loss, n, "validation loss")
        if not losses or loss <= losses[-1]:
            ingredients.append(expert)
            losses.append(loss)
        observe(StepRecord(n, loss, _mean_of(ingredients, shape), losses[-1]))
    return Learned(
        _mean_of(ingredients, shape),
        losses[-1],
        loss_of(frozenset(everyone)),
        n_tried,
        "steps" if n_tried == objective.n_experts else "budget",
        {"ingredients": ingredients, "losses": losses},
    )


def _mean_of(experts: Iterable[int], shape: tuple[int, int]) -> Tensor:
    """Return alpha of `shape` [G, K] with the same weight on each of the experts, in every group."""
    alpha = torch.zeros(shape, dtype=torch.float64)
    alpha[:, [*experts]] = 1
    return alpha / alpha.sum(1, keepdim=True)
