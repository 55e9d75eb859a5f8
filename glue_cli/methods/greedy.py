"""Greedy soup, Wortsman et al. 2022: the uniform mean of those experts by which the held-out loss does not rise."""

import math
from collections.abc import Iterable

import torch

from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import Checkpoint, State, no_checkpoint, part_of, prefixed
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import Learned, StepRecord, check_finite
from glue_cli.methods.stepwise import Observe, run, unobserved
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective
from glue_cli.spec.schema import MixSpec


def greedy(
    objective: Objective,
    settings: MixSpec,
    *,
    seed: int,
    observe: Observe = unobserved,
    checkpoint: Checkpoint = no_checkpoint,
    state: State | None = None,
) -> Learned:
    """Add experts to a soup one by one, from the best alone down; keep each that does not let the soup's loss rise.

    Validation data alone are used, for two validations an expert, the uniform blend's included. A budget says of how
    many batches, the same for all; with one too small for a batch each, only some experts are tried, drawn by `seed`,
    and with one too small for two experts, the uniform blend is returned.

    Args:
        observe: told of every expert tried: the loss with it, and the soup behind it with its own.
        checkpoint: called between two validations; state: where to go on from.
    Returns:
        `n_steps` experts were tried; the account has the soup's experts in their order, and the loss after each.
    Raises:
        NumericalError: no expert has a finite loss.
    """
    domain = Simplex.of(objective)
    if domain.n_experts == 1:
        return Learned(domain.uniform(), None, None, 0, "steps")
    return run(domain, _Soup(objective, domain, settings, seed, observe), checkpoint, state)


class _Soup:
    """The state of a greedy soup. A step is a look at the budget, then one validation each."""

    def __init__(self, objective: Objective, domain: Simplex, settings: MixSpec, seed: int, observe: Observe) -> None:
        self._objective, self._domain, self._seed, self._observe = objective, domain, seed, observe
        self._purse = Purse(settings.parsed_budget, objective.cost, settings.batch_size)
        self._drawn: list[int] = []  # the experts to be tried, in their order; none before the first step
        self._n_batches: int | None = None  # of a validation; None for all
        self._alone: list[float] = []  # the losses of the experts drawn
        self._n_added = 0  # experts that were tried in the soup, from the best alone down
        self._ingredients: list[int] = []
        self._losses: list[float] = []  # of the soup, after each ingredient
        self._last_loss = math.inf  # of the soup that was tried last

    def step(self) -> Learned | None:
        if not self._drawn:
            return self._draw()
        if len(self._alone) < len(self._drawn):
            self._alone.append(self._loss_of([self._drawn[len(self._alone)]]))
            return None
        self._add()
        return self._finish() if self._n_added == len(self._drawn) else None

    def _draw(self) -> Learned | None:
        """Draw the experts that the budget can pay for; without two of them, all is done."""
        purse, uniform, n_experts = self._purse, self._domain.uniform(), self._domain.n_experts
        if purse.is_limited:
            self._objective.validation_terms(uniform, 1)
            purse.warmed_up()
        if purse.is_timed and purse.forwards():
            self._objective.validation_terms(uniform, 1)  # which shows how many forwards the time is
        affordable = purse.forwards()
        n_tried = int(min(n_experts, affordable / 2))
        if n_tried < 2:
            return Learned(uniform, None, None, 0, "budget")
        self._n_batches = None if math.isinf(affordable) else max(1, int(affordable / (2 * n_experts)))
        order = torch.randperm(n_experts, generator=generator(self._seed, "greedy"))
        self._drawn = sorted(order[:n_tried].tolist())
        return None

    def _add(self) -> None:
        """Try the next expert in the soup."""
        expert = self._ranked()[self._n_added]
        self._n_added += 1
        if self._ingredients:
            loss = self._loss_of([*self._ingredients, expert])
        else:
            loss = check_finite(min(self._alone), self._n_added, "validation loss")
        if not self._losses or loss <= self._losses[-1]:
            self._ingredients.append(expert)
            self._losses.append(loss)
        self._last_loss = loss
        soup = self._domain.mean_of(self._ingredients)
        self._observe(StepRecord(self._n_added, loss, soup, self._losses[-1]))

    def _finish(self) -> Learned:
        n_experts = self._domain.n_experts
        tried_last = {*self._ingredients, self._ranked()[-1]}
        return Learned(
            self._domain.mean_of(self._ingredients),
            self._losses[-1],
            self._last_loss if len(tried_last) == n_experts else self._loss_of(range(n_experts)),
            self._n_added,
            "steps" if self._n_added == n_experts else "budget",
            {"ingredients": self._ingredients, "losses": self._losses},
        )

    def _ranked(self) -> list[int]:
        """Return the experts that are tried, from the best alone down."""
        return [expert for _, expert in sorted(zip(self._alone, self._drawn, strict=True))]

    def _loss_of(self, experts: Iterable[int]) -> float:
        loss = self._objective.validation_terms(self._domain.mean_of(experts), self._n_batches).mean().item()
        return loss if math.isfinite(loss) else math.inf

    def state(self) -> State:
        return {
            "drawn": torch.tensor(self._drawn, dtype=torch.int64),
            "n_batches": self._n_batches,
            "alone": torch.tensor(self._alone, dtype=torch.float64),
            "n_added": self._n_added,
            "ingredients": torch.tensor(self._ingredients, dtype=torch.int64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "last_loss": torch.tensor(self._last_loss, dtype=torch.float64),  # in JSON it could not be infinite
            **prefixed("purse", self._purse.state()),
        }

    def restore(self, state: State) -> None:
        self._drawn, self._ingredients = state["drawn"].tolist(), state["ingredients"].tolist()
        self._alone, self._losses = state["alone"].tolist(), state["losses"].tolist()
        self._n_batches, self._n_added = state["n_batches"], state["n_added"]
        self._last_loss = state["last_loss"].item()
        self._purse.restore(part_of(state, "purse"))
